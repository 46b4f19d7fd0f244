"""Signals of a program that runs for long: some ask it to stop, one asks it to reload."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class Signals:
    """Holds what signals asked for, while its ``with`` block runs, which is in the main thread.

    SIGTERM and the first SIGINT (Ctrl-C) ask to stop; a second SIGINT raises ``KeyboardInterrupt``
    at once. SIGHUP asks to reload. The block looks at ``stopping`` and ``take_reload``; where it
    waits, ``wake`` ends its waiting. In another thread than the main one no signal arrives, and the
    block just runs. What the process was started to ignore, as by nohup, stays ignored.

    Attributes:
        stopping: whether the program shall end.
    """

    def __init__(self, wake: Callable[[], None], *, reloads: bool = True) -> None:
        """Prepare; signals are handled from ``with`` on.

        Args:
            wake: is called after each signal, in a thread of its own, so that it may take locks.
            reloads: whether SIGHUP asks to reload; otherwise it asks to stop, as for a program
                whose terminal is closed.
        """
        self._wake, self._reloads = wake, reloads
        self.stopping = False
        self._reload = False
        self._interrupts = 0
        self._before: dict[signal.Signals, Any] = {}
        self._pipe: tuple[int, int] | None = None
        self._waker = threading.Thread(target=self._wake_on_signals, name="signals", daemon=True)

    def take_reload(self) -> bool:
        """Return whether a reload was asked for since the last call."""
        asked, self._reload = self._reload, False
        return asked

    def __enter__(self) -> Signals:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._waker.start()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            # None: it was not Python's, and cannot be put back from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()
        if self._pipe is not None:
            os.close(self._pipe[1])
            self._waker.join()
            os.close(self._pipe[0])
            self._pipe = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Note what is asked for; runs between any two steps of the main thread.

        So it takes no lock, which that thread may hold, and leaves waking to another thread.
        """
        if number == signal.SIGHUP and self._reloads:
            self._reload = True
        else:
            self.stopping = True
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt
        if self._pipe is not None:
            with contextlib.suppress(BlockingIOError):  # enough is written to wake it
                os.write(self._pipe[1], b"!")

    def _wake_on_signals(self) -> None:
        assert self._pipe is not None
        while os.read(self._pipe[0], 1024):
            self._wake()
