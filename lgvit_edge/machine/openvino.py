"""One OpenVINO Core for the whole process, made at first use and never removed.

OpenVINO's CPU plugin gives the thread that loads it an alternate signal stack. Removing the Core
unmaps that stack and restores the previous one, even if the previous one no longer exists. If two
Cores are removed in the order they were made, or one in another thread, a thread keeps an unmapped
stack. Python's signal handlers run on it, and the next signal, such as Ctrl-C or a child's end,
kills the process. A Core that is never removed avoids this.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from lgvit_edge._support.optional import require

_lock = threading.RLock()
# By process: a forked child makes its own Core, because a thread may have held a lock of the
# parent's Core. The parent's Core stays too, because the child still uses its signal stack.
_cores: dict[int, Any] = {}
# No fork happens while a Core is being made: the child would wait for the lock for ever.
os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
)


def shared_core() -> Any:
    """Return the ``openvino.Core`` of this process.

    Raises:
        MissingDependency: openvino is not installed.
    """
    openvino = require("openvino", extra="openvino")
    with _lock:
        process = os.getpid()
        if process not in _cores:
            _cores[process] = openvino.Core()
        return _cores[process]


def devices(core: Any) -> list[str]:
    """Return the devices that a Core finds, as users write them: ``gpu``, ``gpu:1`` for GPU.1."""
    return [name.lower().replace(".", ":") for name in core.available_devices]
