"""Measures when batches pay, and when removing the rows that have left pays.

``python -m lgvit_edge.benchmarks.experiments.batches --engines out/ --data DIR`` runs real images
in batches, in turn through the chain with compaction (rows that leave are removed), through the
chain with all rows until the last one leaves, and through the baseline. Images are resized before.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from lgvit_edge import policies
from lgvit_edge._support.terminal import console, progress_bar
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, choose_images, run_command
from lgvit_edge.benchmarks.report.terminal import table_of
from lgvit_edge.cli.options import Backend, Engines, parse_numbers
from lgvit_edge.errors import UsageError
from lgvit_edge.images.inputs import Inputs
from lgvit_edge.images.preprocess import load_rgb
from lgvit_edge.policies import Departures, Policy
from lgvit_edge.policies.evaluate import ExitCosts
from lgvit_edge.runtime import Session
from lgvit_edge.runtime.runner import every_exit


def main(
    engines: Engines,
    data: Annotated[Path, typer.Option(help="Images: a sub-folder per class, or a flat folder.")],
    policy: Annotated[
        list[str] | None, typer.Option(help="Policy, as for bench; can be repeated.")
    ] = None,
    sizes: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1,8,32",
    samples: Annotated[int, typer.Option(min=32, help="Number of images, spread evenly.")] = 192,
    rounds: Annotated[int, typer.Option(min=1, help="How often each image is run.")] = 3,
    backend: Backend = "auto",
    json_file: JsonFile = None,
) -> None:
    """Times chain, chain without compaction and baseline at each batch size."""
    record = Record(json_file)
    with Session.open(engines, backend=backend) as session, progress_bar("in turn") as progress:
        manifest = session.manifest
        batch_sizes = [int(size) for size in parse_numbers(sizes) or []]
        if max(batch_sizes) > session.max_batch or min(batch_sizes) < 1:
            raise UsageError(
                f"expected batch sizes of 1 to {session.max_batch}, found {sizes}; run: lgvit-edge "
                f"export ... --batch 1:8:{max(batch_sizes)}"
            )
        images = session.prepare(
            [load_rgb(image.path) for image in choose_images(data, manifest, samples)]
        )
        chosen = [policies.parse(text) for text in policy or []] or [session.policy]
        runs, rows = list(itertools.product(chosen, batch_sizes)), []
        for done, (rule, size) in enumerate(runs):
            progress(done, len(runs))
            rows.append(_compare(session, rule, images, size, rounds))
        record.env |= {"runtime": session.describe()}
    cells = (
        "{policy} | {batch} | {macs:.2f} | {wall_clock:.2f} | {efficiency:.2f} | "
        "{without_compaction:.2f} | {images_per_s:.1f} | {baseline_images_per_s:.1f}"
    )
    numbers = ("batch", "MACs x", "wall x", "ratio", "all rows stay x", "images/s", "baseline")
    console.print(table_of(rows, cells, "policy", numbers=numbers))
    record.write(rows=rows)


def _compare(
    session: Session, policy: Policy, images: Inputs, size: int, rounds: int
) -> dict[str, Any]:
    session.policy = policy
    batches = [images[first : first + size] for first in range(0, len(images), size)]
    sides: dict[str, Callable[[Inputs], Any]] = {
        "chain": lambda batch: [result.exit for result in session.run(batch)],
        "staying": lambda batch: _all_stay(session, policy, batch),
        "baseline": lambda batch: session.baseline_logits(batch).argmax(axis=1).tolist(),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    exits: list[int] = []
    for side in sides.values():  # binds every batch size that compaction makes
        for batch in batches[: max(2, 64 // size)]:
            side(batch)
    for round_ in range(rounds):
        for batch in batches:
            for name, side in list(sides.items())[:: 1 if round_ % 2 else -1]:
                start = time.perf_counter()
                outcome = side(batch)
                times[name].append(time.perf_counter() - start)
                if name == "chain":
                    exits += outcome
    seconds = {name: sum(values) for name, values in times.items()}
    manifest = session.manifest
    costs = ExitCosts.of(manifest, heads_apart=session.heads_apart).under(policy)
    macs = costs.baseline_macs / float(np.mean([costs.macs[exit - 1] for exit in exits]))
    wall = seconds["baseline"] / seconds["chain"]
    return {
        "policy": ":".join(str(v) for v in policy.to_json().values()),
        "batch": size,
        "macs": macs,
        "wall_clock": wall,
        "efficiency": wall / macs,
        "without_compaction": seconds["baseline"] / seconds["staying"],
        "images_per_s": len(exits) / seconds["chain"],
        "baseline_images_per_s": len(exits) / seconds["baseline"],
        "raw_s": {name: np.round(values, 6).tolist() for name, values in times.items()},
    }


def _all_stay(session: Session, policy: Policy, images: Inputs) -> list[int]:
    """Runs every segment on all rows until the last row has left; returns the exits."""
    begins = session.manifest.begins
    batch = Departures(policy, len(begins) - 1, len(images))
    exits = np.empty(len(images), np.intp)
    every = every_exit(session.chain, images, begins)
    while len(batch.rows):
        left = batch.see(next(every)[batch.rows])
        exits[left.rows] = left.exit
    return exits.tolist()


if __name__ == "__main__":
    run_command(main)
