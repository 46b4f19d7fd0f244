"""Signals of a program that runs for long: some ask it to stop, one asks it to reload."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType


@dataclass
class Asked:
    """What signals have asked for so far; the program may set it back.

    Attributes:
        stop: whether the program shall end.
        reload: whether it shall read its configuration again.
        interrupted: whether Ctrl-C was pressed.
        wake: is called after each signal, to end a wait; in a thread of its own, so that it may
            take locks. What came before it was set, who sets it looks for.
    """

    stop: bool = False
    reload: bool = False
    interrupted: bool = False
    wake: Callable[[], None] | None = None


@contextlib.contextmanager
def asked_to_stop(*, reloads: bool = True) -> Iterator[Asked]:
    """Yield what signals ask for while the body runs, which is in the main thread.

    SIGTERM and the first SIGINT (Ctrl-C) ask to stop; a second SIGINT raises ``KeyboardInterrupt``
    at once. SIGHUP asks to reload; without ``reloads`` it asks to stop, as is right for a program
    whose terminal is closed. What the process was started to ignore, as by nohup, stays ignored.
    In another thread than the main one no signal arrives, and the body just runs.
    """
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def handle(number: int, frame: FrameType | None) -> None:
        # Runs between any two steps of the main thread. So it takes no lock, which that thread may
        # hold, and leaves waking to another thread.
        again = asked.interrupted
        if number == signal.SIGHUP and reloads:
            asked.reload = True
        else:
            asked.stop = True
        if number == signal.SIGINT:
            asked.interrupted = True
            if again:
                raise KeyboardInterrupt
        with contextlib.suppress(BlockingIOError):  # enough is written to wake it
            os.write(writing, b"!")

    def pass_on() -> None:
        # A signal that comes while another is being handled may reach any thread; Python's handler
        # waits for the main thread, which may wait in a lock. So the C handler writes, too.
        while os.read(reading, 1024):
            if (wake := asked.wake) is not None:  # the program may take it back meanwhile
                wake()

    waker = threading.Thread(target=pass_on, name="signals", daemon=True)
    waker.start()
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {n: old for n in numbers if (old := signal.getsignal(n)) is not signal.SIG_IGN}
    woken = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        for number in before:
            signal.signal(number, handle)
        yield asked
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            # None: it was not Python's, and cannot be put back from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        os.close(writing)
        waker.join()
        os.close(reading)


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the program with status 0 while the body runs, which is in the main thread.

    For the time in which a program has nothing to finish: before and after ``asked_to_stop``.
    """
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
