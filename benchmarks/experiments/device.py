"""Measures everything that a record of a Jetson or an RTX card needs, in one command.

``python -m lgvit_edge.benchmarks.experiments.device --engines out/ --json device.json`` checks the
engines against PyTorch's samples, benches the chain against the baseline at every exit, and
compares the ways of running it: CUDA graphs or kernel by kernel, the three waits, speculation,
images and logits in shared memory or copied.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from lgvit_edge._support.terminal import console, progress_bar, say, table
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, run_command
from lgvit_edge.benchmarks.measure import measure_exits, random_frames
from lgvit_edge.benchmarks.report.terminal import print_report
from lgvit_edge.runtime import FixedExit, Session, TensorRTOptions

# The first is the default; the others are compared with it.
WAYS = {
    "graphs, hybrid wait": TensorRTOptions(),
    "graphs, spin": TensorRTOptions(wait="spin"),
    "graphs, block": TensorRTOptions(wait="block"),
    "kernel by kernel": TensorRTOptions(cuda_graphs=False),
    "graphs, speculation": TensorRTOptions(speculate=True),
    "graphs, zero copy": TensorRTOptions(zero_copy=True),
    "graphs, copies": TensorRTOptions(zero_copy=False),
}
_WARM_UP = 5


def main(
    engines: Annotated[Path, typer.Option(help="A bundle with engines for this GPU.")],
    rounds: Annotated[int, typer.Option(min=4, help="Measurements per exit.")] = 50,
    json_file: JsonFile = None,
    device: Annotated[str | None, typer.Option(help="cuda:1 for the second GPU.")] = None,
) -> None:
    """Checks, benches and compares the ways of running the TensorRT chain."""
    record = Record(json_file)
    with Session.open(engines, backend="tensorrt", device=device) as session:
        parity = session.check_parity()
        with progress_bar("measuring") as progress:
            bench = measure_exits(session, rounds=rounds, progress=progress)
    print_report(bench, console)
    with progress_bar("comparing") as progress:
        ways = compare(engines, rounds, progress, device)
    exits = range(1, 1 + len(ways[next(iter(ways))]))
    output = table("median (ms)", numbers=tuple(f"exit {exit}" for exit in exits))
    for name, times in ways.items():
        output.add_row(name, *(f"{ms:.3f}" for ms in times))
    console.print(output)
    say(f"max |difference| from PyTorch's samples: {parity:.2g}")
    record.write(parity=parity, ways_median_ms=ways, bench=bench)
    if json_file is not None:
        say("please add power mode, clocks and cooling of the device")


def compare(
    engines: Path, rounds: int, progress: Any, device: str | None = None
) -> dict[str, list[float]]:
    """Returns median milliseconds of the chain stopped at each exit, by way of running it."""
    with contextlib.ExitStack() as stack:
        sessions = {
            name: stack.enter_context(
                Session.open(engines, backend="tensorrt", device=device, tensorrt=way)
            )
            for name, way in WAYS.items()
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
                    if WAYS[name].speculate:  # its work must not run into the next measurement
                        session.policy = FixedExit(exits)
                        session.run(images)
    return {name: [statistics.median(t) for t in by_exit] for name, by_exit in times.items()}


if __name__ == "__main__":
    run_command(main)
