"""How fast a job is, and how long it still takes."""

from __future__ import annotations

import time
from collections import deque

from lgvit_edge._support.pace import in_words
from lgvit_edge._support.terminal import Update

_WINDOW = 60.0  # seconds that the present speed is measured over
_EVERY = 0.2  # seconds between two showings: one may take as long as a small network


class Speed:
    """Measures images per second, and shows them with the time left on a progress bar."""

    def __init__(self, done: int, total: int, update: Update) -> None:
        """Begin with ``done`` images, which took no time of this run."""
        self._total, self._update = total, update
        self._began = time.monotonic()
        self._seen = deque([(self._began, done)])

    def add(self, done: int) -> None:
        """Note that so many images are done, those of earlier runs included."""
        now = time.monotonic()
        if now - self._seen[-1][0] < _EVERY and done < self._total:
            return
        self._seen.append((now, done))
        while now - self._seen[0][0] > _WINDOW and len(self._seen) > 2:
            self._seen.popleft()
        self._update(done, self._total, f"images: {self}")

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    def __str__(self) -> str:
        """Return "52.1 a second, about 3 min left"."""
        (before, first), (now, done) = self._seen[0], self._seen[-1]
        if done == first or now == before:
            return ""
        rate = (done - first) / (now - before)
        left = (self._total - done) / rate
        return f"{rate:,.1f} a second" + (f", about {in_words(left)} left" if left else "")
