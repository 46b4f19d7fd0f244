"""Smoothing: steadies a camera's answers over its last frames, by votes or by an average."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from lgvit_edge.errors import UsageError
from lgvit_edge.policies.memory import LIFETIME, Memory
from lgvit_edge.runtime.result import Result


class Smoother:
    """Takes the results of one camera, or of one region of it, as they come.

    This one leaves them as they are. Each frame goes to ``session.run(..., memories=[
    smoother.memory])``, and its result to ``take``.

    Attributes:
        memory: what the session decides on; None where it decides on single frames.
    """

    memory: Memory | None = None

    def take(self, result: Result, start: float) -> Result:
        """Return the smoothed result of a frame.

        Class, label and confidence are the smoothed ones, the latter in the same unit; all else is
        the frame's own. ``start`` is the ``time.perf_counter()`` at which it was delivered.
        """
        return result

    def reset(self) -> None:
        """Forget all frames, as where the camera was lost or has another resolution."""


class _Average(Smoother):
    """The session decides on the average, so what it returns is smooth already."""

    def __init__(self, window: int, seconds: float) -> None:
        self._frames = Memory(window, lifetime=seconds)
        self.memory = self._frames

    def reset(self) -> None:
        self._frames.forget()


class _Majority(Smoother):
    """The class that most of the last frames were given; of several, the one given last.

    Its confidence is the mean of the frames that were given it, times their share of all frames:
    it never says more than those frames did, and a narrow majority says less. Where less is surer,
    as with entropy, the mean is divided by the share.
    """

    def __init__(self, window: int, seconds: float) -> None:
        self._results: deque[Result] = deque(maxlen=window)
        self._seconds, self._start = seconds, 0.0

    def take(self, result: Result, start: float) -> Result:
        if not 0 <= start - self._start <= self._seconds:  # as a memory forgets
            self._results.clear()
        self._start = start
        if self._results and self._results[-1].bundle != result.bundle:  # the session got another
            self._results.clear()
        self._results.append(result)
        votes = Counter(each.class_index for each in self._results)
        most = max(votes.values())
        winner = next(each for each in reversed(self._results) if votes[each.class_index] == most)
        same = [r.confidence for r in self._results if r.class_index == winner.class_index]
        mean, share = sum(same) / most, most / len(self._results)
        return dataclasses.replace(
            result,
            class_index=winner.class_index,
            label=winner.label,
            confidence=mean / share if result.measure.low_is_sure else mean * share,
        )

    def reset(self) -> None:
        self._results.clear()


@dataclass(frozen=True)
class Smoothing:
    """How a camera's answers are smoothed.

    Attributes:
        kind: ``majority``, ``average``, or ``none``.
        window: frames that count.
        seconds: without a frame, after which those before are forgotten.
    """

    kind: str = "none"
    window: int = 8
    seconds: float = LIFETIME

    KINDS: ClassVar[dict[str, Callable[[int, float], Smoother]]] = {
        "majority": _Majority,
        "average": _Average,
    }

    def start(self) -> Smoother:
        """Return what smooths one camera, or one region of it."""
        make = self.KINDS.get(self.kind)
        return Smoother() if make is None else make(self.window, self.seconds)


def parse_smoothing(text: str | None) -> Smoothing:
    """Return the smoothing that was typed, such as ``majority:8`` or ``average:8``; None for none.

    A third part is the seconds after which frames are forgotten: ``average:8:30``.

    Raises:
        UsageError: the text has another form, or a number is out of range.
    """
    if text is None:
        return Smoothing()
    form = re.fullmatch(rf"({'|'.join(Smoothing.KINDS)}):(\d+)(?::(\d+(?:\.\d+)?))?", text.strip())
    if form is None:
        raise UsageError(
            "a smoothing must be majority:N or average:N with the frames that count, such as "
            "majority:8, or average:8:30 to forget them after 30 seconds without a frame; found "
            f"{text!r}"
        )
    kind, window, seconds = form.groups()
    try:
        memory = Memory(int(window), lifetime=LIFETIME if seconds is None else float(seconds))
    except (UsageError, ValueError) as error:  # int() refuses thousands of digits
        raise UsageError(f"smoothing {text[:40]!r}: {error}") from None
    return Smoothing(kind, memory.window, memory.lifetime)
