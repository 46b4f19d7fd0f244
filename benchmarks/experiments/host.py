"""Times the host's share: importing the runtime, opening a bundle, deciding at an exit.

``python -m lgvit_edge.benchmarks.experiments.host --engines out/``
"""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from lgvit_edge._support.terminal import say
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, run_command
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.policies import Confidence, Policy
from lgvit_edge.runtime import Session

_IMPORT = """
import time; start = time.perf_counter()
import lgvit_edge.runtime
print(time.perf_counter() - start)
"""
_OPEN = """
import sys, time, numpy as np; start = time.perf_counter()
from lgvit_edge.runtime import Session
Session.open(sys.argv[1]).predict(np.zeros((480, 640, 3), np.uint8))
print(time.perf_counter() - start)
"""


def main(
    engines: Annotated[Path, typer.Option(help="Bundle to measure.")],
    runs: Annotated[int, typer.Option(min=1, help="Processes per measurement.")] = 5,
    json_file: JsonFile = None,
) -> None:
    """Times import, opening to the first prediction, and one exit decision for 1000 classes."""
    record = Record(json_file)
    seconds = {
        "import_s": _in_new_processes(_IMPORT, runs),
        "open_to_first_prediction_s": _in_new_processes(_OPEN, runs, str(engines)),
    }
    decision_us = decision_cost(engines, Confidence(0.999)) * 1e6
    for name, times in seconds.items():
        say(f"{name}: median {statistics.median(times):.3f} of {runs} processes")
    say(f"decision_us: {decision_us:.1f} (1000 classes, batch 1, median)")
    record.write(**seconds, decision_us=decision_us)


def decision_cost(engines: Path, policy: Policy, *, classes: int = 1000) -> float:
    """Returns the seconds per exit of everything but the network: batch 1, median of many runs."""
    bundle = open_bundle(engines)
    manifest = dataclasses.replace(bundle.manifest, labels=())
    logits = np.random.default_rng(0).normal(size=(1, classes)).astype(np.float32)
    bundle = dataclasses.replace(bundle, manifest=manifest)
    session = Session(bundle, policy, lambda names: _ScriptedChain(logits))
    side = manifest.passes[0].image_size
    image = session.prepare([np.zeros((side, side, 3), np.uint8)])
    times = []
    for _ in range(2000):
        start = time.perf_counter()
        session.run(image)
        times.append(time.perf_counter() - start)
    return statistics.median(times) / len(manifest.segments)


class _ScriptedChain:
    """A chain that returns fixed logits at once, so that only the host's share is timed."""

    max_batch = 1

    def __init__(self, logits: NDArray[np.float32]) -> None:
        self._logits = logits

    def start(self, images: NDArray[Any], segment: int = 0) -> None: ...

    def step(self) -> NDArray[np.float32]:
        return self._logits

    def keep(self, rows: NDArray[np.intp]) -> None: ...

    def describe(self) -> dict[str, Any]:
        return {"backend": "scripted"}

    def close(self) -> None: ...


def _in_new_processes(code: str, runs: int, *arguments: str) -> list[float]:
    command = [sys.executable, "-c", code, *arguments]
    return [
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for _ in range(runs)
    ]


if __name__ == "__main__":
    run_command(main)
