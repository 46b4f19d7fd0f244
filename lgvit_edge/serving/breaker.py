"""A circuit breaker: a server that fails again and again is left alone for a while."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

_FIRST, _LONGEST, _SPREAD = 1.0, 60.0, 0.2


class Breaker:
    """Tells when a server may be asked; for several threads.

    After some failures in a row nobody asks for a second. Then one request tries: if it fails too,
    the pause doubles, up to a minute. Pauses vary by 20 %, so that many devices do not come back
    together.
    """

    def __init__(
        self,
        failures: int = 3,
        *,
        clock: Callable[[], float] = time.monotonic,
        seed: int | None = None,
    ) -> None:
        """Open after so many failures in a row; ``clock`` returns seconds."""
        self._most, self._clock, self._random = failures, clock, random.Random(seed)
        self._lock = threading.Lock()
        self._failed = 0  # in a row
        self._pause, self._until = _FIRST, 0.0
        self._trying = False  # whether the one request that tries is under way

    def asks(self) -> bool:
        """Return whether to ask now; whoever does then calls ``succeeded`` or ``failed``."""
        with self._lock:
            if self._failed < self._most:
                return True
            if self._trying or self._clock() < self._until:
                return False
            self._trying = True
            return True

    @property
    def open(self) -> bool:
        """Whether so many failed that requests are kept back, but for one that tries."""
        return self._failed >= self._most

    @property
    def paused(self) -> bool:
        """Whether ``asks`` would keep a request back now."""
        with self._lock:
            return self.open and (self._trying or self._clock() < self._until)

    def succeeded(self) -> None:
        """Note an answer."""
        with self._lock:
            self._failed, self._pause, self._trying = 0, _FIRST, False

    def failed(self) -> None:
        """Note that there was none."""
        with self._lock:
            self._failed += 1
            if self._failed == self._most or self._trying:
                spread = self._random.uniform(1 - _SPREAD, 1 + _SPREAD)
                self._until = self._clock() + self._pause * spread
                self._pause = min(2 * self._pause, _LONGEST)
            self._trying = False
