"""One OpenVINO Core for the whole process, made at its first use and kept to the end.

OpenVINO's CPU plugin gives the thread that loads it an alternate signal stack. When its Core goes,
the stack is unmapped and the one before is put back, without a look at whether that one is still
there. Two Cores that go in the order they came, or one that goes in another thread, leave a thread
with a stack that is gone. Python's signal handlers run on it, and the next signal of any kind, a
child's end or Ctrl-C, kills the process. A Core that never goes leaves every thread's stack be.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from lgvit_edge._support.optional import require

_lock = threading.RLock()
# By process: a forked child makes its own, because a thread of the parent may have held a lock of
# the parent's. That one stays too, for the child goes on using its signal stack.
_cores: dict[int, Any] = {}
# Nobody forks while a Core is being made: the child would wait for it for ever.
os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
)


def shared_core() -> Any:
    """The ``openvino.Core`` of this process.

    Raises:
        MissingDependency: openvino is not installed.
    """
    openvino = require("openvino", extra="openvino")
    with _lock:
        process = os.getpid()
        if process not in _cores:
            _cores[process] = openvino.Core()
        return _cores[process]
