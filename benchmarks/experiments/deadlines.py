"""Measures how often deadlines are met under load, and what that costs in accuracy.

``python -m lgvit_edge.benchmarks.experiments.deadlines --engines out/ --data DIR`` runs real
images one by one beside a competing load: at several deadlines, and without one to compare.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from lgvit_edge._support.terminal import console, progress_bar
from lgvit_edge.benchmarks.experiments.competitor import competing
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, choose_images, run_command
from lgvit_edge.benchmarks.report.terminal import table_of
from lgvit_edge.cli.options import Backend, Engines, PolicyText, parse_numbers
from lgvit_edge.images.labelled import LabelledImage
from lgvit_edge.images.preprocess import load_rgb
from lgvit_edge.policies import parse
from lgvit_edge.runtime import Session
from lgvit_edge.runtime.deadlines import MISS


def main(
    engines: Engines,
    data: Annotated[Path, typer.Option(help="Images: a sub-folder per class.")],
    deadlines: Annotated[
        str, typer.Option(help="Deadlines, as multiples of the whole chain's idle time.")
    ] = "1,1.5,2,3",
    frames: Annotated[int, typer.Option(min=100, help="Frames per deadline.")] = 2000,
    load: Annotated[int, typer.Option(min=0, help="Number of competing processes.")] = 1,
    policy: PolicyText = None,
    backend: Backend = "auto",
    json_file: JsonFile = None,
) -> None:
    """Runs frames under load at several deadlines; prints late answers and accuracy."""
    record = Record(json_file)
    chosen = None if policy is None else parse(policy)
    factors = parse_numbers(deadlines) or []
    rows = []
    with Session.open(engines, backend=backend, policy=chosen) as session:
        whole = session.warm_up(30)
        images = choose_images(data, session.manifest, frames)
        with progress_bar("under load") as progress, competing(load):
            runs = [None, *(factor * whole for factor in factors)]
            for number, deadline in enumerate(runs):

                def report(done: int, before: int = number * frames) -> None:
                    progress(before + done, len(runs) * frames)

                rows.append(_run(session, images, frames, deadline, report))
        record.env |= {"runtime": session.describe()}
    console.print(
        f"{frames} frames each, {load} competing process(es), "
        f"{record.env['runtime']['backend']}; the whole chain takes {whole:.1f} ms "
        "on the idle machine; a segment may exceed its "
        f"expected time in {MISS:.1%} of its runs",
        highlight=False,
    )
    cells = (
        "{name} | {late:.2%} | {p50:.1f} | {p99:.1f} | {p99_9:.1f} | {mean_exit:.2f} | "
        "{accuracy:.2%}"
    )
    names = ["none" if row["late"] is None else f"{row['deadline_ms']:.1f}" for row in rows]
    named = [row | {"name": name} for name, row in zip(names, rows, strict=True)]
    numbers = ("late", "p50 (ms)", "p99", "p99.9", "mean exit", "accuracy")
    console.print(table_of(named, cells, "deadline (ms)", numbers=numbers, blank=""))
    record.write(whole_chain_ms=whole, load=load, rows=rows)


def _run(
    session: Session,
    images: Sequence[LabelledImage],
    frames: int,
    deadline: float | None,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    late, right, exits, times = 0, 0, [], []
    for number in range(frames):
        image = images[number % len(images)]
        result = session.predict(load_rgb(image.path), deadline_ms=deadline)
        late += result.late
        right += result.class_index == image.class_index
        exits.append(result.exit)
        times.append(result.latency_ms)
        if number % 50 == 0:
            progress(number)
    p50, p99, p99_9 = np.percentile(times, [50, 99, 99.9])
    return {
        "deadline_ms": deadline,
        "late": None if deadline is None else late / frames,
        "p50": float(p50),
        "p99": float(p99),
        "p99_9": float(p99_9),
        "mean_exit": float(np.mean(exits)),
        "accuracy": right / frames,
        "raw": {"exit": exits, "latency_ms": np.round(times, 3).tolist()},
    }


if __name__ == "__main__":
    run_command(main)
