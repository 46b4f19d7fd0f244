"""Compares the ways in which one backend can run a chain: graphs, waits, thread pools."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lgvit_edge.benchmarks.measure import random_frames
from lgvit_edge.policies import FixedExit
from lgvit_edge.runtime import Session, TensorRTOptions

# By backend: the arguments of ``Session.open``. The first way is the default. ONNX Runtime has one
# way: its thread pool belongs to the process.
WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "tensorrt": {
        "graphs, hybrid wait": {"tensorrt": TensorRTOptions()},
        "graphs, spin": {"tensorrt": TensorRTOptions(wait="spin")},
        "graphs, block": {"tensorrt": TensorRTOptions(wait="block")},
        "kernel by kernel": {"tensorrt": TensorRTOptions(cuda_graphs=False)},
        "graphs, speculation": {"tensorrt": TensorRTOptions(speculate=True)},
        "graphs, zero copy": {"tensorrt": TensorRTOptions(zero_copy=True)},
        "graphs, copies": {"tensorrt": TensorRTOptions(zero_copy=False)},
    },
    "openvino": {"default": {}, "one thread": {"threads": 1}},
}
_WARM_UP = 5


def compare(
    engines: Path,
    backend: str,
    *,
    rounds: int,
    device: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[float]]:
    """Returns median times in ms of the chain stopped at each exit, ``[M + 1]``, by way.

    The ways take turns on the same image. Raises as ``Session.open`` does.
    """
    ways = WAYS[backend]
    with contextlib.ExitStack() as stack:
        sessions = {
            name: stack.enter_context(
                Session.open(engines, backend=backend, device=device, **arguments)
            )
            for name, arguments in ways.items()
        }
        first = next(iter(sessions.values()))
        exits = len(first.manifest.segments)
        images = first.prepare(random_frames(first.manifest, 1))
        times: dict[str, list[list[float]]] = {n: [[] for _ in range(exits)] for n in sessions}
        names = list(sessions)
        for done in range(_WARM_UP + rounds):
            progress(done, _WARM_UP + rounds)
            for exit in range(exits):
                turn = done % len(names)  # so that none always follows the same one
                for name in names[turn:] + names[:turn]:
                    session = sessions[name]
                    session.policy = FixedExit(exit + 1)
                    start = time.perf_counter()
                    session.run(images)
                    elapsed = (time.perf_counter() - start) * 1e3
                    if done >= _WARM_UP:
                        times[name][exit].append(elapsed)
                    if "speculation" in name:  # its work must not run into the next measurement
                        session.policy = FixedExit(exits)
                        session.run(images)
    return {name: [statistics.median(t) for t in by_exit] for name, by_exit in times.items()}
