"""Measures a last block computed for the tokens that are read, against the whole block.

``python -m lgvit_edge.benchmarks.experiments.last_block --arch vit-base`` exports random weights
both ways, and runs baselines and whole chains in turn on the same frame, on each CPU backend.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from lgvit_edge._support.optional import require
from lgvit_edge._support.terminal import console, say
from lgvit_edge.architecture.placement import plan_exits
from lgvit_edge.architecture.published import architecture
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, chain_to, run_command
from lgvit_edge.benchmarks.measure import random_frames
from lgvit_edge.benchmarks.report.terminal import table_of
from lgvit_edge.errors import UsageError
from lgvit_edge.export import export_bundle
from lgvit_edge.model import LGViT, block_macs
from lgvit_edge.model.backbones.classifier import TokenClassifier
from lgvit_edge.model.randomised import randomised
from lgvit_edge.policies.scores import difference
from lgvit_edge.runtime import Session
from lgvit_edge.runtime.backends.ort_pool import join_pool

_TURN = 2  # frames in a row, after one that brings its weights into the caches
_WAYS = ("whole", "shipped")


class _MayReadMore(TokenClassifier):
    """Reads the class token; as another class may read other tokens too, all are computed."""


def main(
    arch: Annotated[list[str], typer.Option(help="Published size, such as vit-tiny; repeatable.")],
    backend: Annotated[list[str], typer.Option(help="Repeatable.")] = ["onnxruntime", "openvino"],  # noqa: B006
    exits: Annotated[str, typer.Option(help="As of export.")] = "uniform:8",
    rounds: Annotated[int, typer.Option(min=4, help="Turns of each graph.")] = 100,
    threads: Annotated[int, typer.Option(min=1, help="Threads of a backend.")] = 2,
    json_file: JsonFile = None,
) -> None:
    """Times baseline and whole chain with the last block whole, and as it is shipped."""
    record, rows = Record(json_file), []
    join_pool(require("onnxruntime", extra="cpu"), threads)  # the export's checks would size it
    for name in arch:
        config = architecture(name)
        model = randomised(LGViT(config.replace(exits=plan_exits(exits, block_macs(config)))))
        with tempfile.TemporaryDirectory() as folder:
            ways = {way: Path(folder) / way for way in _WAYS}
            export_bundle(whole(model), ways["whole"])
            export_bundle(model, ways["shipped"])
            for kind in backend:
                rows += [{"arch": name, **row} for row in measure(ways, kind, rounds, threads)]
    cells = (
        "{arch} | {backend} | {graph} | {whole_ms:.2f} | {shipped_ms:.2f} | {time:.3f} | "
        "{p25:.3f} | {p75:.3f} | {cpu_time:.3f} | {macs:.3f} | {difference:.1e}"
    )
    times = ("whole (ms)", "shipped (ms)", "time x", "p25", "p75", "CPU time x")
    numbers = (*times, "MACs x", "logits differ by")
    console.print(table_of(rows, cells, "model", "backend", "graph", numbers=numbers))
    say("time x: the median over turns of shipped / whole, on the clock; logits: relative above 1")
    record.write(rounds=rounds, frames_a_turn=_TURN, rows=rows)


def whole(model: LGViT) -> LGViT:
    """Returns the model, whose last block is exported whole; parameters are shared."""
    if type(model.backbone.final) is not TokenClassifier:
        raise UsageError("the last block is whole as it is: expected a model that reads its token")
    twin = copy.copy(model)
    backbone, final = copy.copy(model.backbone), copy.copy(model.backbone.final)
    final.__class__ = _MayReadMore
    backbone._modules = {**backbone._modules, "final": final}
    twin._modules = {**twin._modules, "backbone": backbone}
    return twin


def measure(ways: dict[str, Path], kind: str, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Returns a row for the baseline and one for the chain."""
    rows = []
    options: dict[str, Any] = {"backend": kind, "threads": threads, "device": "cpu"}
    with (
        Session.open(ways["whole"], **options) as before,
        Session.open(ways["shipped"], **options) as after,
    ):
        frame = random_frames(after.manifest, 1)
        images, last = after.prepare(frame), len(after.manifest.segments)
        runs: list[Callable[[], object]] = []
        for session in (before, after):
            chain = chain_to(session, images)
            runs += [
                lambda session=session: session.baseline_logits(images),  # type: ignore[misc]
                lambda chain=chain: chain(last),  # type: ignore[misc]
            ]
        times, busy = in_turn(runs, rounds)
        logits = [[s.baseline_logits(images), s.exit_logits(frame)[:, -1]] for s in (before, after)]
        macs = [
            [s.manifest.baseline.macs, s.manifest.cumulative_macs(last)] for s in (before, after)
        ]
    for i, graph in enumerate(("baseline", "chain")):
        old, new = times[i], times[2 + i]
        low, middle, high = np.percentile(new / old, [25, 50, 75])
        busy_ratio = float(np.median(busy[2 + i] / busy[i]))
        rows.append(
            {
                "backend": kind,
                "graph": graph,
                "whole_ms": float(np.median(old)),
                "shipped_ms": float(np.median(new)),
                "time": float(middle),
                "p25": float(low),
                "p75": float(high),
                "cpu_time": busy_ratio,
                "macs": macs[1][i] / macs[0][i],
                "difference": difference(logits[1][i], logits[0][i]),
                "raw_ms": np.round([old, new], 4).tolist(),
                "raw_cpu_ms": np.round([busy[i], busy[2 + i]], 4).tolist(),
            }
        )
    return rows


def in_turn(runs: list[Callable[[], object]], rounds: int) -> NDArray[np.float64]:
    """Returns milliseconds a frame, ``[2, runs, rounds]``: on the clock, and of processor time.

    Each round begins with another run.
    """
    times = np.empty((2, len(runs), rounds))
    for turn in range(-2, rounds):  # the first two warm up
        for place in range(len(runs)):
            i = (place + turn) % len(runs)
            runs[i]()
            start = time.perf_counter(), time.process_time()
            for _ in range(_TURN):
                runs[i]()
            end = time.perf_counter(), time.process_time()
            times[:, i, turn] = np.subtract(end, start) * 1e3 / _TURN
    return times


if __name__ == "__main__":
    run_command(main)
