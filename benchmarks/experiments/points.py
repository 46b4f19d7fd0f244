"""What ``tune`` finds, checked: the front beside the sweep, the guarantee, predicted latencies.

python -m lgvit_edge.benchmarks.experiments.points --engines out/ --logits out.logits.npy
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from lgvit_edge._support.files import write_json
from lgvit_edge._support.terminal import console, progress_bar, say, table
from lgvit_edge.benchmarks.measure import command_line
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.cli.options import Engines, exit_status
from lgvit_edge.images.labelled import evenly, find_images
from lgvit_edge.images.preprocess import load_rgb
from lgvit_edge.machine.environment import environment
from lgvit_edge.policies.evaluate import Images
from lgvit_edge.runtime import Session
from lgvit_edge.tuning import TuneOptions, tune
from lgvit_edge.tuning.certify import certified
from lgvit_edge.tuning.costs import Costs
from lgvit_edge.tuning.record import Recording, read
from lgvit_edge.tuning.search import policies_by, search
from lgvit_edge.tuning.shapes import Scorer

_RISKS = (0.01, 0.02, 0.05)
_DELTA = 0.05
_BLOCK = 8  # images in a row, as bench has them


def main(
    engines: Engines,
    logits: Annotated[Path, typer.Option(help="What `lgvit-edge tune` kept.")],
    splits: Annotated[int, typer.Option(min=1, help="Splits the front is searched on.")] = 5,
    draws: Annotated[int, typer.Option(min=1, help="Sets of images that certify.")] = 500,
    data: Annotated[
        Path | None, typer.Option(help="Images to run the bundle's operating points on.")
    ] = None,
    samples: Annotated[int, typer.Option(min=8, help="Images of --data.")] = 400,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write a record.")] = None,
) -> None:
    """Search on several splits; certify on many draws; hold predicted times against measured."""
    manifest = open_bundle(engines).manifest
    kept = read(logits, manifest)
    found = []
    with progress_bar("searching") as progress:
        for seed in range(splits):
            progress(seed, splits)
            found.append(_gain(kept, manifest, seed))
    _print_gains(found)
    broken = _guarantee(kept, kept.costs(manifest), draws)
    rows = table("risk", numbers=("draws", "bound broken", "allowed", "plain share", "certified"))
    for row in broken:
        rows.add_row(
            f"{row['risk']:.0%}",
            str(row["draws"]),
            f"{row['broken']:.1%} ± {1.96 * row['error']:.1%}",
            f"{_DELTA:.0%}",
            f"{row['broken_without_a_test']:.1%}",
            f"{row['mean_certified']:.1f} of {row['policies']}",
        )
    console.print(rows)
    say("plain share: how often it is broken by whoever takes the fastest with few enough errors")
    times = [] if data is None else _latencies(engines, data, samples)
    if json_file is not None:
        record = {
            "env": environment(),
            "gains": found,
            "guarantee": broken,
            "latencies": times,
            "command": command_line(),
        }
        write_json(json_file, record)


def _gain(kept: Recording, manifest: Manifest, seed: int) -> dict[str, Any]:
    began = time.monotonic()
    tuned = tune(kept, manifest, TuneOptions(seed=seed))
    return tuned.gain() | {"seed": seed, "seconds": time.monotonic() - began}


def _print_gains(found: list[dict[str, Any]]) -> None:
    drops = list(found[0]["speedup_at_drop"])
    names = [f"{who} at -{float(d) * 100:g}" for d in drops for who in ("tuned", "sweep")]
    rows = table("seed", numbers=("mean points", "least", *names, "seconds"))
    for row in found:
        speed_ups = [s for d in drops for s in row["speedup_at_drop"][d]]
        rows.add_row(
            str(row["seed"]),
            f"{100 * row['mean_accuracy']:+.2f}",
            f"{100 * row['least_accuracy']:+.2f}",
            *("-" if s is None else f"{s:.3f}x" for s in speed_ups),
            f"{row['seconds']:.0f}",
        )
    console.print(rows)


def _guarantee(kept: Recording, costs: Costs, draws: int) -> list[dict[str, Any]]:
    """A path from a quarter of the images; the rest is the population, whose risks are known."""
    rows = np.random.default_rng(0).permutation(kept.usable)
    parts = np.split(rows, [len(rows) // 4])
    tuning, population = (
        Images(kept.rows["logits"][part], kept.rows["label"][part].astype(np.int64))
        for part in map(np.sort, parts)
    )
    curves = search(Scorer(tuning, costs), trials=100, seed=0)
    path = policies_by(curves, lambda curve: -curve.errors)[::-1]
    wrong = np.stack(
        [
            population.baseline_right & (p.replay(population.logits)[1] != population.labels)
            for p in path
        ]
    )
    return [_broken(wrong, risk, draws) for risk in _RISKS]


def _broken(wrong: NDArray[np.bool_], risk: float, draws: int) -> dict[str, Any]:
    """How often one of the certified policies errs more than the risk on the population."""
    true, count = wrong.mean(axis=1), wrong.shape[1]
    rng = np.random.default_rng(1)
    tested, plain, sure = 0, 0, 0
    for _ in range(draws):
        errors = wrong[:, rng.integers(0, count, count)].sum(axis=1)
        places = certified(errors.tolist(), count, risk, _DELTA)
        tested += bool((true[:places] > risk).any())
        few = np.flatnonzero(errors <= risk * count)
        plain += bool(true[few[-1]] > risk)
        sure += places
    share = tested / draws
    return {
        "risk": risk,
        "delta": _DELTA,
        "draws": draws,
        "images": count,
        "policies": len(wrong),
        "broken": share,
        "error": float(np.sqrt(max(share * (1 - share), 1e-9) / draws)),
        "broken_without_a_test": plain / draws,
        "mean_certified": sure / draws,
    }


def _latencies(engines: Path, data: Path, samples: int) -> list[dict[str, Any]]:
    """Each point's mean latency, as predicted from timed segments and as measured in turn."""
    with Session.open(engines) as session, progress_bar("running points") as progress:
        manifest = session.manifest
        images = evenly(
            find_images(data, num_classes=manifest.num_classes, names=manifest.labels), samples
        )
        frames = [load_rgb(image.path) for image in images]
        names = list(manifest.points)
        segments: list[NDArray[np.float64]] = []
        prepare: list[float] = []
        measured: dict[str, list[float]] = {name: [] for name in names}
        taken: dict[str, list[int]] = {name: [] for name in names}
        for first in range(0, len(frames), _BLOCK):
            progress(first, len(frames))
            block = frames[first : first + _BLOCK]
            for frame in block:
                start = time.perf_counter()
                ready = session.prepare([frame])
                prepare.append((time.perf_counter() - start) * 1e3)
                segments.append(session.timed_exits(ready)[1])
            turn = first // _BLOCK % len(names)  # none always follows the same one
            for name in names[turn:] + names[:turn]:
                session.point = name
                for frame in block:
                    result = session.predict(frame)
                    measured[name].append(result.latency_ms)
                    taken[name].append(result.exit)
    cost = np.mean(prepare) + np.cumsum(np.mean(segments, axis=0))
    rows = []
    shown = table("point", numbers=("predicted (ms)", "measured (ms)", "measured / predicted"))
    for name in names:
        predicted = float(cost[np.array(taken[name]) - 1].mean())
        mean = float(np.mean(measured[name]))
        rows.append({"point": name, "predicted_ms": predicted, "measured_ms": mean})
        shown.add_row(name, f"{predicted:.2f}", f"{mean:.2f}", f"{mean / predicted:.3f}")
    console.print(shown)
    return rows


if __name__ == "__main__":
    with exit_status():
        typer.run(main)
