"""What the segments take: when the session was warmed up, and now."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Of the segments, how many may take longer than ``longest`` says. A frame is late when the last
# segment it was allowed does; a frame is allowed few segments that hardly fit.
MISS = 0.005
_STEP = 0.05
_MEMORY = 1 / 8  # of the load: half of a change is seen within one frame of five segments


class SegmentClock:
    """Times of single images, at present and at worst.

    What a segment takes is ``base * load * spread``: its median when nothing else ran, how much
    slower the machine is at present (a moving average over all segments, so deep ones are known
    although only few images get there), and how far single times lie above that. The last follows
    the 99.5th percentile: a time beyond it moves it up by 5 %, one below it down by 200 times less.
    """

    def __init__(self) -> None:
        self._base: list[float] = []
        self.load = self.spread = 1.0

    @property
    def calibrated(self) -> bool:
        """Whether there are times to go by."""
        return bool(self._base)

    def calibrate(self, times: NDArray[np.float64]) -> None:
        """Start from measured times, ``[runs, M + 1]`` in ms."""
        self._base = [max(float(ms), 1e-6) for ms in np.median(times, axis=0)]
        self.load, self.spread = 1.0, 1.5

    def exit_ms(self) -> NDArray[np.float64]:
        """From the input to each exit, ``[M + 1]`` in ms, as calibrated."""
        return np.cumsum(self._base)

    def add(self, segment: int, ms: float) -> None:
        """See what a segment took, the decision after it included."""
        if not self._base:
            return
        ratio = ms / self._base[segment]
        if ratio > self.load * self.spread:
            self.spread *= 1 + _STEP
        else:
            self.spread = max(1.0, self.spread * (1 - _STEP * MISS))
        self.load += (ratio - self.load) * _MEMORY

    def longest(self, segment: int) -> float:
        """What a segment takes at most, in ms, but for one time in 200."""
        return self._base[segment] * self.load * self.spread
