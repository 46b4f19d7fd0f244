"""Measures what cutting costs: the chain against one graph.

``python -m lgvit_edge.benchmarks.experiments.overhead --engines out/`` times, for every exit m, the
chain stopped there and one ONNX graph that holds the same blocks and heads 1..m, in turn on the
same input, and the whole chain against the baseline.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from lgvit_edge._support.optional import require
from lgvit_edge._support.terminal import console
from lgvit_edge.benchmarks.experiments.frame import (
    JsonFile,
    Record,
    chain_to,
    only_pass,
    run_command,
)
from lgvit_edge.benchmarks.experiments.if_graph import BoundGraph, prefixed, save_like
from lgvit_edge.benchmarks.measure import random_frames
from lgvit_edge.benchmarks.report.terminal import table_of
from lgvit_edge.bundle.directory import Bundle, open_bundle
from lgvit_edge.errors import UsageError
from lgvit_edge.runtime import Session

Run = Callable[[], object]


def main(
    engines: Annotated[Path, typer.Option(help="Bundle to measure.")],
    rounds: Annotated[int, typer.Option(min=4, help="Measurements per exit.")] = 40,
    threads: Annotated[int, typer.Option(min=1, help="Threads of ONNX Runtime.")] = 2,
    json_file: JsonFile = None,
) -> None:
    """Times the chain against one graph with the same blocks and heads, at every exit."""
    record = Record(json_file)
    if open_bundle(engines, verify=False).manifest.precision != "fp32":
        raise UsageError("the comparison takes fp32 bundles: export one with --precision fp32")
    with Session.open(engines, backend="onnxruntime", threads=threads, device="cpu") as session:
        rows = measure(session, open_bundle(engines, verify=False), rounds, threads)
        record.env |= {"runtime": session.describe()}
    cells = (
        "{exit} | {chain_ms:.2f} | {one_graph_ms:.2f} | "
        "{overhead:.3f} | {overhead_p25:.3f} | {overhead_p75:.3f}"
    )
    numbers = ("chain (ms)", "one graph (ms)", "overhead", "p25", "p75")
    console.print(table_of(rows["exits"], cells, "exit", numbers=numbers))
    whole = rows["whole"]
    console.print(
        f"whole chain {whole['chain_ms']:.2f} ms, baseline {whole['baseline_ms']:.2f} ms: "
        f"{whole['time_ratio']:.3f}x the time for {whole['macs_ratio']:.3f}x the MACs",
        highlight=False,
    )
    record.write(rounds=rounds, **rows)


def measure(session: Session, bundle: Bundle, rounds: int, threads: int) -> dict[str, Any]:
    """Returns median times, and quartiles of the ratio chain / one graph over paired rounds."""
    manifest = session.manifest
    only_pass(manifest)
    images = session.prepare(random_frames(manifest, 1))
    exits = range(1, len(manifest.segments) + 1)
    with tempfile.TemporaryDirectory(dir=bundle.root.absolute().parent) as folder:
        graphs = [_one_graph(bundle, m, Path(folder)) for m in exits]
        runs = [_runner(path, images.of(0), threads) for path in graphs]
    chains = [functools.partial(chain_to(session, images), exit) for exit in exits]
    times = [_interleaved(pair, rounds) for pair in zip(chains, runs, strict=True)]
    whole = _interleaved((chains[-1], lambda: session.baseline_logits(images)), rounds)
    chain_ms, baseline_ms = np.median(whole, axis=1).tolist()
    return {
        "exits": [{"exit": exit, **_compare(*pair)} for exit, pair in enumerate(times, 1)],
        "whole": {
            "chain_ms": chain_ms,
            "baseline_ms": baseline_ms,
            "time_ratio": float(np.median(whole[0] / whole[1])),
            "macs_ratio": manifest.cumulative_macs(len(exits)) / manifest.baseline.macs,
        },
    }


def _compare(chain: NDArray[np.float64], graph: NDArray[np.float64]) -> dict[str, Any]:
    low, middle, high = np.percentile(chain / graph, [25, 50, 75])
    return {
        "chain_ms": float(np.median(chain)),
        "one_graph_ms": float(np.median(graph)),
        "overhead": float(middle),
        "overhead_p25": float(low),
        "overhead_p75": float(high),
        "raw_ms": np.round([chain, graph], 4).tolist(),
    }


def _interleaved(runs: tuple[Run, Run], rounds: int) -> NDArray[np.float64]:
    """Returns milliseconds ``[2, rounds]``, measured in turn; the order alternates to be fair."""
    for run in runs * 3:
        run()
    times = np.empty((2, rounds))
    for i in range(rounds):
        for side in (0, 1) if i % 2 == 0 else (1, 0):
            start = time.perf_counter()
            runs[side]()
            times[side, i] = (time.perf_counter() - start) * 1e3
    return times


def _one_graph(bundle: Bundle, exit: int, folder: Path) -> Path:
    """Joins segments 0..exit - 1 into one graph with all their logits as outputs."""
    compose = require("onnx.compose", extra="export")
    model = prefixed(bundle, 0)
    joined, hidden = model.graph, ""
    for index, segment in enumerate(bundle.manifest.segments[:exit]):
        if index:
            model, source = prefixed(bundle, index), f"s{index}_{segment.spec.inputs[0].name}"
            joined = compose.merge_graphs(joined, model.graph, io_map=[(hidden, source)])
        hidden = f"s{index}_{segment.spec.outputs[0].name}"
    return save_like(model, joined, bundle, folder / f"one_graph_{exit}.onnx")


def _runner(path: Path, images: NDArray[Any], threads: int) -> Run:
    """Returns a function that copies the images into the graph's input and runs it."""
    source = np.empty_like(images)
    graph = BoundGraph(path, [source], threads)

    def run() -> object:
        np.copyto(source, images)
        return graph()

    return run


if __name__ == "__main__":
    run_command(main)
