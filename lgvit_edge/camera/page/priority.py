"""Threads that stand back behind those that answer frames."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

_NICE = 10


def stand_back() -> None:
    """Let other threads go first, from now on; on Linux, where threads have priorities."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
