"""Waits for a segment on a GPU: sleeps for most of the time that it usually takes, then asks.

A thread that sleeps until the driver wakes it comes late, and one that asks all the time keeps a
core busy for the milliseconds that a segment takes on a Jetson.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable

_REMEMBERED = 8  # runs; the shortest of them counts, so a slow one changes nothing
_ENOUGH = 3  # runs before anything is believed
_SPARE = 0.05  # share of that time that is not slept, because it varies
_MARGIN = 100e-6  # seconds that are not slept either, beside what sleeps were late
_PATIENCE = 0.1  # seconds of asking, or the usual time where that is longer, before it blocks


class Waits:
    """Learns how long each kind of work takes, and waits for it at little cost.

    Seconds are those of ``clock``. Times that became longer are believed after ``_REMEMBERED``
    runs, shorter ones at once.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.clock, self._sleep = clock, sleep
        self._times: dict[Hashable, deque[float]] = {}
        self._late = 0.0  # what sleeps were late, on average
        self._ended = 0.0  # the end of the last wait

    def wait(
        self, key: Hashable, queued: float, done: Callable[[], bool], block: Callable[[], None]
    ) -> None:
        """Return when work is done that was queued at ``queued``, behind what was waited for last.

        ``key`` names its kind. ``done`` asks, and ``block`` sleeps until it is done.
        """
        times = self._times.setdefault(key, deque(maxlen=_REMEMBERED))
        usual = min(times) if len(times) >= _ENOUGH else 0.0
        now, late = self.clock(), 0.0
        began = max(queued, self._ended)
        wake = began + usual * (1 - _SPARE) - _MARGIN - 2 * self._late
        finished = done()
        if wake > now and not finished:
            self._sleep(wake - now)
            now = self.clock()
            late = now - wake
            finished = done()
            if finished and now < began + usual:
                times.clear()  # it is quicker than it ever was: the clocks changed
        self._late += (late - self._late) / _REMEMBERED
        if not finished:
            limit = now + max(usual, _PATIENCE)
            while not done():
                if self.clock() > limit:
                    block()
                    break
            times.append(self.clock() - began)
        self._ended = self.clock()
