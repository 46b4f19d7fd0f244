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

    A request belongs to the state that it began in: what becomes of it later changes nothing.
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
        self._state = 1  # counts changes: closed, open, a try, open again
        self._failed = 0  # in a row
        self._pause, self._until = _FIRST, 0.0
        self._trying = False  # whether the one request that tries is under way

    def asks(self) -> int | None:
        """Return a ticket to ask now, or None; its holder calls ``ended`` with it."""
        with self._lock:
            if self._failed >= self._most:
                if self._paused():
                    return None
                self._trying = True
                self._state += 1
            return self._state

    @property
    def paused(self) -> bool:
        """Whether ``asks`` would keep a request back now."""
        with self._lock:
            return self._failed >= self._most and self._paused()

    def ended(self, ticket: int, good: bool | None) -> bool:
        """Note an answer, or that there was none; None if it was not waited for long enough.

        That tells nothing, unless it was the one request that tries. Returns whether the breaker
        opened, or stays open, because of it.
        """
        with self._lock:
            if ticket != self._state:
                return False
            if good:
                if self._trying:
                    self._state += 1
                self._failed, self._pause, self._trying = 0, _FIRST, False
                return False
            if good is None and not self._trying:
                return False
            self._failed += 1
            if self._failed < self._most:
                return False
            spread = self._random.uniform(1 - _SPREAD, 1 + _SPREAD)
            self._until = self._clock() + self._pause * spread
            self._pause = min(2 * self._pause, _LONGEST)
            self._trying = False
            self._state += 1
            return True

    def _paused(self) -> bool:
        return self._trying or self._clock() < self._until
