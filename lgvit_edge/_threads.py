"""One thread pool for all ONNX Runtime sessions of this process.

A chain of sessions with private pools is slow: while one segment computes, the pools of the others
still spin for work and take its cores (ViT-B in 9 segments on 2 cores: 374 ms against 150 ms).
"""

from __future__ import annotations

import os
import threading
from typing import Any

_lock = threading.Lock()
_pool_size: int | None = None


def available_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def claim_pool(ort: Any, threads: int) -> bool:
    """Make ONNX Runtime's process-wide pool of this size, or join it if it is.

    Returns:
        Whether sessions may share it: not when it exists with another size.
    """
    global _pool_size
    with _lock:
        if _pool_size is None:
            ort.set_global_thread_pool_sizes(threads, 1)
            _pool_size = threads
        return _pool_size == threads


def session_options(ort: Any, threads: int, *, shared: bool) -> Any:
    """Options of one graph's session.

    Args:
        ort: the onnxruntime module.
        threads: of a private pool.
        shared: use the process-wide pool; otherwise a private pool that stops spinning as soon as
            its graph is done.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3  # warnings about the machine are not the user's business
    if shared:
        options.use_per_session_threads = False
    else:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.force_spinning_stop", "1")
    return options
