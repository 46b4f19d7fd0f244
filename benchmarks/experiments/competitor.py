"""Runs other programs that compete for the same cores."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

# Small numpy products with random pauses, as an unrelated program has them.
_PROGRAM = """
import random, sys, time
import numpy as np
rng = random.Random(int(sys.argv[1]))
a = np.random.default_rng(0).random((256, 256), np.float32)
while True:
    end = time.perf_counter() + rng.expovariate(1 / 0.2)
    while time.perf_counter() < end:
        a @ a
    time.sleep(rng.expovariate(1 / 0.02))
"""


@contextlib.contextmanager
def competing(processes: int) -> Iterator[None]:
    """Runs this many processes within the context; each computes nine tenths of the time."""
    command = [sys.executable, "-c", _PROGRAM]
    running = [subprocess.Popen([*command, str(seed)]) for seed in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()
