"""The memory of this machine, and what this process uses of it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
from pathlib import Path

from lgvit_edge.machine.container import ROOT, memory_limit


def memory_bytes(root: Path = ROOT) -> int:
    """Return the bytes that this process may use: all memory, or a container's limit."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = memory_limit(root)
    return whole if limit is None else min(whole, limit)


def peak_memory_mb() -> float:
    """Return the largest resident size of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)


def resident_mb() -> float:
    """Return the resident size of this process now, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def return_freed() -> None:
    """Give freed memory back to the system, which glibc keeps in small pieces otherwise.

    A process that opened and closed sessions would grow by tens of MB. It takes milliseconds.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))
