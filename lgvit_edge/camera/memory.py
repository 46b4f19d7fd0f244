"""Gives free memory back to the system, now and then: the C library keeps it for itself.

Frames are allocated in one thread and freed in another. glibc has a pool for each few threads, and
a pool with holes stays as large as it was; in a run of half an hour that grew without end, while
what was in use stayed level.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def giving_back(every: float = 60.0) -> Iterator[None]:
    """Give back what is free every so many seconds while the body runs, in a thread.

    It takes some milliseconds. Where the C library is not glibc, nothing is done.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        yield
        return
    ends = threading.Event()

    def run() -> None:
        while not ends.wait(every):
            trim(0)

    thread = threading.Thread(target=run, name="memory", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join(1.0)
