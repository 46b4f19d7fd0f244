"""Measures what heads cost that no image can stop at, run and left out.

``python -m lgvit_edge.benchmarks.experiments.heads --engines out/`` runs one image through the
whole chain, in turn with all heads, with every second one, and with none, and through the model
without exits. It does so on every CPU backend that is installed, in every precision of this
processor, and prints times and MACs as shares of the model without exits.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from lgvit_edge._support.terminal import console, progress_bar
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, run_command
from lgvit_edge.benchmarks.measure import random_frames
from lgvit_edge.benchmarks.report.terminal import table_of
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.errors import MissingDependency, UsageError
from lgvit_edge.policies.evaluate import ExitCosts
from lgvit_edge.runtime import Confidence, Policy, Session
from lgvit_edge.runtime.backends.openvino import available_precisions

# No random logits are as sure, and every exit with this threshold is read.
_HARDLY = 1 - 1e-7
ALL, HALF, NONE = "all heads", "every second", "none"


def main(
    engines: Annotated[Path, typer.Option(help="Bundle to measure.")],
    rounds: Annotated[int, typer.Option(min=4, help="Times that everything runs.")] = 40,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: one per core.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Times the whole chain with all heads, with every second one, and with none."""
    record = Record(json_file)
    manifest = open_bundle(engines).manifest
    if len(manifest.segments) < 3:
        raise UsageError("expected a bundle with at least two exits")
    rows, raw = [], []
    for backend, precision in _ways():
        with Session.open(
            engines, backend=backend, precision=precision, threads=threads
        ) as session:
            found, times = measure(session, rounds)
            rows += [row | {"backend": backend, "precision": precision or "fp32"} for row in found]
            raw.append({"runtime": session.describe(), "ms": times})
    cells = "{backend} | {precision} | {heads} | {ms:.2f} | {time_ratio:.3f} | {macs_ratio:.3f}"
    numbers = ("ms", "time x", "MACs x")
    console.print(table_of(rows, cells, "backend", "precision", "heads run", numbers=numbers))
    record.write(rounds=rounds, rows=rows, raw=raw)


def _ways() -> list[tuple[str, str | None]]:
    """Return backends and precisions of this machine."""
    ways: list[tuple[str, str | None]] = [("onnxruntime", None)]
    with contextlib.suppress(MissingDependency):
        ways += [("openvino", p) for p in available_precisions("cpu") if p != "fp16"]
    return ways


def measure(session: Session, rounds: int) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """Returns rows of median times and MACs, and all times in ms."""
    manifest = session.manifest
    exits = len(manifest.segments) - 1
    images = session.prepare(random_frames(manifest, 1))
    policies: dict[str, Policy] = {
        name: Confidence(
            tuple(_HARDLY if exit % step == 0 else 1.0 for exit in range(1, exits + 1))
        )
        for name, step in ((ALL, 1), (HALF, 2), (NONE, exits + 1))
    }
    # One that reads no head would run the model without exits: what is timed are segments.
    sides: dict[str, Callable[[], object]] = {
        NONE: lambda: session.timed_blocks(images),
        "without exits": lambda: session.baseline_logits(images),
    }
    for name in (ALL, HALF):
        sides[name] = _chain(session, policies[name], images)
    times: dict[str, list[float]] = {name: [] for name in sides}
    with progress_bar("timing") as progress:
        for done in range(rounds):
            progress(done, rounds)
            for name, side in list(sides.items())[:: 1 if done % 2 else -1]:
                side()  # warms caches
                start = time.perf_counter()
                side()
                times[name].append((time.perf_counter() - start) * 1e3)
    costs = ExitCosts.of(manifest, heads_apart=session.heads_apart)
    base = statistics.median(times["without exits"])
    rows = []
    for name, policy in policies.items():
        ms = statistics.median(times[name])
        macs = (
            costs.macs[-1] - sum(costs.head_macs) if name == NONE else costs.under(policy).macs[-1]
        )
        ratio = macs / manifest.baseline.macs
        rows.append({"heads": name, "ms": ms, "time_ratio": ms / base, "macs_ratio": ratio})
    return rows, times


def _chain(session: Session, policy: Policy, images: Any) -> Callable[[], object]:
    def run() -> object:
        if session.policy != policy:
            session.policy = policy
        return session.run(images)

    return run


if __name__ == "__main__":
    run_command(main)
