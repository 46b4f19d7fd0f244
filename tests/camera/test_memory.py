"""Memory that is free goes back to the system."""

from __future__ import annotations

import ctypes
import re
import time
from pathlib import Path

import pytest

from lgvit_edge.camera.memory import giving_back


def resident() -> int:
    """Memory of this process, in MB."""
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_what_is_free_between_what_is_in_use_is_given_back() -> None:
    # Below the size from which the system is asked for each block by itself.
    blocks = [b"x" * 100_000 for _ in range(2_000)]
    kept = [*blocks[::50], blocks[-1]]
    full = resident()
    del blocks
    assert resident() > full - 50  # nobody gives it back
    with giving_back(0.05):
        end = time.monotonic() + 10
        while resident() > full - 100 and time.monotonic() < end:
            time.sleep(0.02)
    assert resident() <= full - 100 and len(kept) == 41
