"""How long works still take, by the time that earlier ones took and by their sizes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from lgvit_edge._support.text import tell

T = TypeVar("T")
_QUIET = 10.0  # seconds


class Pace:
    """Estimates the time left of works that are done one after the other.

    The work that ended last tells how long a size takes; one that takes longer tells it anew. Sizes
    are positive, in any unit.
    """

    def __init__(self, size: float) -> None:
        """Take the size of all works together."""
        self._left = size  # with the present work
        self._rate: float | None = None  # seconds for a size of 1
        self._size = 0.0  # of the present work
        self._began = time.monotonic()

    def learn(self, size: float, seconds: float) -> None:
        """Take what works of this size took, which are not among those to be done."""
        self._rate = seconds / size

    def begin(self, size: float) -> None:
        """Begin a work; the one before it has ended."""
        if self._size:
            self.learn(self._size, time.monotonic() - self._began)
        self._left -= self._size
        self._size, self._began = size, time.monotonic()

    def __str__(self) -> str:
        """Return "about 3 min left"; empty where no work has ended yet, or nothing is left."""
        if self._rate is None:
            return ""
        elapsed = time.monotonic() - self._began
        rate = max(self._rate, elapsed / self._size) if self._size else self._rate
        left = rate * self._left - elapsed
        return f"about {in_words(left)} left" if left >= 0.5 else ""


def paced(done: str, works: Sequence[T], sizes: Sequence[float]) -> Iterator[T]:
    """Yield works one after the other, and say on standard error how far they are.

    That is every ten seconds, between two works: "compiled 3 of 16, about 50 s left". ``done`` is
    the word for it, ``sizes`` are those of the works, as for ``Pace``.
    """
    pace, said = Pace(sum(sizes)), time.monotonic()
    for count, (work, size) in enumerate(zip(works, sizes, strict=True)):
        pace.begin(size)
        if time.monotonic() - said >= _QUIET:
            said = time.monotonic()
            tell(", ".join(filter(None, (f"{done} {count} of {len(works)}", str(pace)))))
        yield work


def in_words(seconds: float) -> str:
    """Return a duration as people say it: "8 s", "50 s", "3 min", "1 h 20 min"."""
    if seconds < 10:
        return f"{math.ceil(seconds)} s"
    if seconds <= 90:
        return f"{10 * math.ceil(seconds / 10)} s"
    minutes = math.ceil(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(10 * math.ceil(minutes / 10), 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
