"""The memory of this process."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

import pytest

from lgvit_edge.machine.memory import return_freed


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone keeps freed memory so")
def test_what_was_freed_in_pieces_goes_back_to_the_system() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    pieces = [libc.malloc(60_000) for _ in range(2000)]  # 120 MB, below what glibc maps on its own
    for piece in pieces:
        ctypes.memset(piece, 1, 60_000)
    for piece in pieces[:-1]:  # the last one holds the heap's end in place
        libc.free(piece)
    before = resident()
    return_freed()
    assert before - resident() > 100_000_000
    libc.free(pieces[-1])
