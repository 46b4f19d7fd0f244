"""Predicts how long each segment takes at present, which deadlines and ``TargetRate`` go by."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

# Share of segment times that may exceed ``longest``. A frame is late only when its last allowed
# segment does, and few frames are allowed a segment that only just fits.
MISS = 0.005
_STEP = 0.05
_MEMORY = 1 / 8  # weight of a new time in the load: half of a change shows after five segments


class SegmentClock:
    """Estimates how long each segment of one image takes at most, from the times seen so far.

    The estimate is ``base * load * spread``. ``base`` is the segment's median from warm-up.
    ``load`` is how much slower the machine is now: a moving average over all segments, so deep ones
    are covered although few images reach them. ``spread`` is how far single times lie above that.
    It follows the 99.5th percentile: a longer time raises it by 5 %, a shorter one lowers it 200
    times less.

    A later pass begins with resizing the image again. That takes no longer where segments do, but
    where frames are larger, so it is estimated by itself: as the longest of late.
    """

    def __init__(self) -> None:
        self._base: list[float] = []
        self._starts: list[float] = []
        self._blocks: dict[int, float] = {}
        self._usual_starts = np.zeros(0)
        self.load = self.spread = 1.0

    @property
    def calibrated(self) -> bool:
        """Whether ``calibrate`` has been called."""
        return bool(self._base)

    def calibrate(
        self,
        times: NDArray[np.float64],
        starts: NDArray[np.float64],
        blocks: Mapping[int, float] | None = None,
    ) -> None:
        """Set the medians from measured times, ``[runs, M + 1]`` in ms.

        ``starts`` is the part of each in which a later pass was begun, likewise; ``blocks`` are
        medians of segments without their heads, of those that may run so.
        """
        self._blocks = dict(blocks or {})
        self._base = [max(float(ms), 1e-6) for ms in np.median(times - starts, axis=0)]
        self._usual_starts = np.median(starts, axis=0)
        self._starts = starts.max(axis=0).tolist()
        self.load, self.spread = 1.0, 1.5

    def exit_ms(self) -> NDArray[np.float64]:
        """Return the calibrated time from the input to each exit, ``[M + 1]`` in ms."""
        return np.cumsum(self._base + self._usual_starts)

    def saved_ms(self) -> NDArray[np.float64]:
        """Return the time that each segment is calibrated to take less without its head, in ms.

        ``[M + 1]``; 0 for those that were not run so.
        """
        saved = np.zeros(len(self._base))
        for segment, ms in self._blocks.items():
            saved[segment] = max(0.0, self._base[segment] - ms)
        return saved

    def add(self, segment: int, ms: float, *, head: bool = True) -> None:
        """Record how long a segment took, its exit decision included, or without its head."""
        base = self._base[segment] if head and self._base else self._blocks.get(segment, 0.0)
        if not base:
            return
        ratio = ms / base
        if ratio > self.load * self.spread:
            self.spread *= 1 + _STEP
        else:
            self.spread = max(1.0, self.spread * (1 - _STEP * MISS))
        self.load += (ratio - self.load) * _MEMORY

    def add_start(self, segment: int, ms: float) -> None:
        """Record how long it took to begin the pass whose first segment this is."""
        if self._starts:
            before = self._starts[segment]
            self._starts[segment] = max(ms, before + (ms - before) * _STEP)

    def longest(self, segment: int) -> float:
        """Return the time in ms that a segment exceeds only once in 200 runs."""
        return self._base[segment] * self.load * self.spread + self._starts[segment]
