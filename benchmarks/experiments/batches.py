"""When do batches pay, and when does it pay to take rows that left out of them?

``python -m lgvit_edge.benchmarks.experiments.batches --engines out/ --data DIR`` runs real images
in batches through the chain, with rows leaving (compaction) and with all rows staying until the
last one has left, and through the baseline in the same batches, in turn. Images are resized
beforehand.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from lgvit_edge import policies
from lgvit_edge._support.terminal import console, progress_bar, table
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, run_command
from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.cli.options import Backend, Engines, parse_numbers
from lgvit_edge.errors import UsageError
from lgvit_edge.images.labelled import evenly, find_images
from lgvit_edge.images.preprocess import load_rgb
from lgvit_edge.policies import Departures, Policy
from lgvit_edge.runtime import Session


def main(
    engines: Engines,
    data: Annotated[Path, typer.Option(help="Images: a sub-folder per class, or a flat folder.")],
    policy: Annotated[
        list[str] | None, typer.Option(help="As for bench; may be given several times.")
    ] = None,
    sizes: Annotated[str, typer.Option(help="Batch sizes.")] = "1,8,32",
    samples: Annotated[int, typer.Option(min=32, help="Images, spread evenly.")] = 192,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each image is run.")] = 3,
    backend: Backend = "auto",
    json_file: JsonFile = None,
) -> None:
    """Time chain, chain without compaction and baseline at each batch size."""
    record = Record(json_file)
    with Session.open(engines, backend=backend) as session, progress_bar("in turn") as progress:
        manifest = session.manifest
        wanted = [int(size) for size in parse_numbers(sizes) or []]
        if max(wanted) > session.max_batch or min(wanted) < 1:
            raise UsageError(
                f"expected batch sizes of 1 to {session.max_batch}, found {sizes}; run: lgvit-edge "
                f"export ... --batch 1:8:{max(wanted)}"
            )
        found = find_images(data, num_classes=manifest.num_classes, names=manifest.labels)
        images = session.prepare([load_rgb(i.path) for i in evenly(found, samples)])
        chosen = [policies.parse(text) for text in policy or []] or [session.policy]
        rows = []
        for number, rule in enumerate(chosen):
            for place, size in enumerate(wanted):
                progress(number * len(wanted) + place, len(chosen) * len(wanted))
                rows.append(_compare(session, rule, images, size, rounds))
        record.env |= {"runtime": session.describe()}
    shown = table(
        "policy",
        numbers=("batch", "MACs x", "wall x", "ratio", "all rows stay x", "images/s", "baseline"),
    )
    for row in rows:
        ratios = (row["macs"], row["wall_clock"], row["efficiency"], row["without_compaction"])
        shown.add_row(
            row["policy"],
            str(row["batch"]),
            *(f"{ratio:.2f}" for ratio in ratios),
            f"{row['images_per_s']:.1f}",
            f"{row['baseline_images_per_s']:.1f}",
        )
    console.print(shown)
    record.write(rows=rows)


def _compare(
    session: Session, policy: Policy, images: NDArray[Any], size: int, rounds: int
) -> dict[str, Any]:
    session.policy = policy
    batches = [images[first : first + size] for first in range(0, len(images), size)]
    sides: dict[str, Callable[[NDArray[Any]], list[int]]] = {
        "chain": lambda batch: [result.exit for result in session.run(batch)],
        "staying": lambda batch: _all_stay(session, policy, batch),
        "baseline": lambda batch: session.baseline_logits(batch).argmax(axis=1).tolist(),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    exits: list[int] = []
    for side in sides.values():  # every size that compaction makes of a batch is bound once
        for batch in batches[: max(2, 64 // size)]:
            side(batch)
    for round_ in range(rounds):
        for batch in batches:
            for name, side in list(sides.items())[:: 1 if round_ % 2 else -1]:
                start = time.perf_counter()
                said = side(batch)
                times[name].append(time.perf_counter() - start)
                if name == "chain":
                    exits += said
    spent = {name: sum(found) for name, found in times.items()}
    macs = _macs_speedup(session.manifest, exits)
    wall = spent["baseline"] / spent["chain"]
    count = len(exits)
    return {
        "policy": ":".join(str(v) for v in policy.to_json().values()),
        "batch": size,
        "macs": macs,
        "wall_clock": wall,
        "efficiency": wall / macs,
        "without_compaction": spent["baseline"] / spent["staying"],
        "images_per_s": count / spent["chain"],
        "baseline_images_per_s": count / spent["baseline"],
        "raw_s": {name: np.round(found, 6).tolist() for name, found in times.items()},
    }


def _all_stay(session: Session, policy: Policy, images: NDArray[Any]) -> list[int]:
    """The chain until the last row has left, every segment on all rows."""
    batch = Departures(policy, len(session.manifest.segments) - 1, len(images))
    exits = np.empty(len(images), np.intp)
    session.chain.start(images)
    while len(batch.rows):
        left = batch.see(session.chain.step()[batch.rows])
        exits[left.rows] = left.exit
    return exits.tolist()


def _macs_speedup(manifest: Manifest, exits: list[int]) -> float:
    return manifest.baseline.macs / float(np.mean([manifest.cumulative_macs(e) for e in exits]))


if __name__ == "__main__":
    run_command(main)
