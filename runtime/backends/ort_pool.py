"""Shares one thread pool and one memory arena among all ONNX Runtime sessions of this process.

A chain of sessions with private pools is slow: while one segment computes, the pools of the others
still spin for work and take its cores (ViT-B in 9 segments on 2 cores: 374 ms against 150 ms). With
private arenas each segment computes in memory that is not in the caches.
"""

from __future__ import annotations

import threading
from typing import Any

from lgvit_edge._support.forks import CURE, Birthplace
from lgvit_edge.errors import BackendError
from lgvit_edge.machine.cpu import available_cores

_lock = threading.Lock()
_pool_size: int | None = None
_birthplace = Birthplace()  # of the pool


def can_share(ort: Any) -> bool:
    """Return whether this onnxruntime has a process-wide pool for Python, as 1.23 and newer do."""
    return hasattr(ort, "set_global_thread_pool_sizes")


def join_pool(ort: Any, threads: int | None) -> int:
    """Make ONNX Runtime's process-wide pool, or join the existing one; return its size.

    Once it exists, ONNX Runtime refuses sessions with a pool of their own. Without ``threads`` it
    gets one per core. ``ort`` is the onnxruntime module; one that cannot share makes no pool, and
    the size is that of each private one.

    Raises:
        BackendError: the existing pool has another size, or is that of the process which this one
            was forked from.
    """
    global _pool_size, _birthplace
    _refuse_forked()
    if not can_share(ort):
        return threads or available_cores()
    with _lock:
        if _pool_size is None:
            size = threads or available_cores()
            ort.set_global_thread_pool_sizes(size, 1)
            arena = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR
            memory = ort.OrtMemoryInfo("Cpu", arena, 0, ort.OrtMemType.DEFAULT)
            ort.create_and_register_allocator(memory, None)
            _pool_size, _birthplace = size, Birthplace()
        if threads not in (None, _pool_size):
            raise BackendError(
                f"expected {threads} threads, but ONNX Runtime's pool in this process already has "
                f"{_pool_size}; open the first session with threads={threads}, or use a process "
                "of its own"
            )
        return _pool_size


def refuse_pool() -> None:
    """Raise BackendError if the process-wide pool exists, next to which no session has its own."""
    _refuse_forked()
    if _pool_size is not None:
        raise BackendError(
            "private thread pools cannot be had after another session in this process opened with "
            "thread_pool='global'; open all of them with thread_pool='private'"
        )


def _refuse_forked() -> None:
    # ONNX Runtime would go on with a pool that has no threads. The lock may be held for ever.
    if _pool_size is not None and _birthplace.left:
        raise BackendError(
            "a session was opened before this process was forked, and the threads of ONNX "
            f"Runtime's pool stayed in the other one; {CURE}"
        )


def open_session(
    ort: Any,
    path: str,
    threads: int,
    *,
    shared: bool,
    providers: list[Any],
    profile: str | None = None,
) -> tuple[Any, bool]:
    """Load a graph into an ONNX Runtime session, with the preferred of ``providers`` first.

    ``shared`` uses the process-wide pool; otherwise a private pool of ``threads`` stops spinning as
    soon as its graph is done. Returns the session, and whether it shares the process-wide pool. It
    does not where the application had started ONNX Runtime without one, or ``ort`` cannot share.
    With ``profile``, times of all operators are written to a file whose name begins so.
    """
    global _pool_size
    shared = shared and can_share(ort)
    options = ort.SessionOptions()
    options.log_severity_level = 3  # warnings about the machine are not the user's business
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    if shared:
        options.use_per_session_threads = False
        options.add_session_config_entry("session.use_env_allocators", "1")
    else:
        # Spinning inside a graph pays: forbidding it altogether (session.intra_op.allow_spinning)
        # was 5 to 25% slower for the whole chain (onnxruntime 1.20, 2 cores, ViT-Tiny and ViT-B).
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return ort.InferenceSession(path, options, providers=providers), shared
    except Exception as error:  # onnxruntime has no common base class
        if not shared or "GlobalThreadPools" not in str(error):
            raise
        with _lock:
            _pool_size = None  # the pool was not made
        return open_session(ort, path, threads, shared=False, providers=providers, profile=profile)
