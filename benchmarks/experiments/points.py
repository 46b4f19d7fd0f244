"""Checks what ``tune`` finds: Pareto front against sweep, guarantee, predicted latencies.

``python -m lgvit_edge.benchmarks.experiments.points --engines out/ --logits out.logits.npy``
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from lgvit_edge._support.terminal import console, progress_bar, say, table
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, choose_images, run_command
from lgvit_edge.benchmarks.report.terminal import table_of
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.cli.options import Engines
from lgvit_edge.images.preprocess import load_rgb
from lgvit_edge.runtime import Result, Session
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
    logits: Annotated[Path, typer.Option(help="Logits that `lgvit-edge tune` stored.")],
    splits: Annotated[int, typer.Option(min=1, help="Splits to search the Pareto front on.")] = 5,
    draws: Annotated[int, typer.Option(min=1, help="Random draws to check the guarantee.")] = 500,
    data: Annotated[
        Path | None, typer.Option(help="Images to run the bundle's operating points on.")
    ] = None,
    samples: Annotated[int, typer.Option(min=8, help="Number of images of --data.")] = 400,
    json_file: JsonFile = None,
) -> None:
    """Searches on splits, certifies on random draws, compares predicted and measured times."""
    record = Record(json_file)
    manifest = open_bundle(engines).manifest
    recording = read(logits, manifest)
    gains = []
    with progress_bar("searching") as progress:
        for seed in range(splits):
            progress(seed, splits)
            began = time.monotonic()
            gain = tune(recording, manifest, TuneOptions(seed=seed)).gain()
            gains.append(gain | {"seed": seed, "seconds": time.monotonic() - began})
    _print_gains(gains)
    broken = _guarantee(recording, recording.costs(manifest), draws)
    cells = (
        "{risk:.0%} | {draws} | {broken:.1%} ± {margin:.1%} | {delta:.0%} | "
        "{broken_without_a_test:.1%} | {mean_certified:.1f} of {policies}"
    )
    numbers = ("draws", "bound broken", "allowed", "plain share", "certified")
    rows = [row | {"margin": 1.96 * row["error"]} for row in broken]
    console.print(table_of(rows, cells, "risk", numbers=numbers))
    say("plain share: how often the fastest policy with few errors breaks the bound untested")
    times = [] if data is None else _latencies(engines, data, samples)
    record.write(gains=gains, guarantee=broken, latencies=times)


def _print_gains(gains: list[dict[str, Any]]) -> None:
    drops = list(gains[0]["speedup_at_drop"])
    names = [f"{who} at -{float(d) * 100:g}" for d in drops for who in ("tuned", "sweep")]
    rows = table("seed", numbers=("mean points", "least", *names, "seconds"))
    for row in gains:
        speed_ups = [s for d in drops for s in row["speedup_at_drop"][d]]
        rows.add_row(
            str(row["seed"]),
            f"{100 * row['mean_accuracy']:+.2f}",
            f"{100 * row['least_accuracy']:+.2f}",
            *("-" if s is None else f"{s:.3f}x" for s in speed_ups),
            f"{row['seconds']:.0f}",
        )
    console.print(rows)


def _guarantee(recording: Recording, costs: Costs, draws: int) -> list[dict[str, Any]]:
    """Tunes policies on a quarter of the images; the rest is the population with known risks."""
    rows = np.random.default_rng(0).permutation(recording.usable)
    parts = np.split(rows, [len(rows) // 4])
    tuning, population = (recording.images(np.sort(part)) for part in parts)
    curves = search(Scorer(tuning, costs), trials=100, seed=0)
    path = policies_by(curves, lambda curve: -curve.errors)[::-1]
    answers = np.stack([policy.replay(population.logits)[1] for policy in path])
    wrong = population.baseline_right & (answers != population.labels)
    return [_broken(wrong, risk, draws) for risk in _RISKS]


def _broken(wrong: NDArray[np.bool_], risk: float, draws: int) -> dict[str, Any]:
    """Measures how often a certified policy errs more than ``risk`` on the population."""
    true, count = wrong.mean(axis=1), wrong.shape[1]
    rng = np.random.default_rng(1)
    tested, plain, total = 0, 0, 0
    for _ in range(draws):
        errors = wrong[:, rng.integers(0, count, count)].sum(axis=1)
        places = certified(errors.tolist(), count, risk, _DELTA)
        tested += bool((true[:places] > risk).any())
        few = np.flatnonzero(errors <= risk * count)
        plain += bool(true[few[-1]] > risk)
        total += places
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
        "mean_certified": total / draws,
    }


def _latencies(engines: Path, data: Path, samples: int) -> list[dict[str, Any]]:
    """Returns each point's mean latency, predicted from timed segments and measured in turn."""
    with Session.open(engines) as session, progress_bar("running points") as progress:
        manifest = session.manifest
        frames = [load_rgb(image.path) for image in choose_images(data, manifest, samples)]
        names = list(manifest.points)
        segments: list[NDArray[np.float64]] = []
        prepare: list[float] = []
        results: dict[str, list[Result]] = {name: [] for name in names}
        for first in range(0, len(frames), _BLOCK):
            progress(first, len(frames))
            block = frames[first : first + _BLOCK]
            for frame in block:
                start = time.perf_counter()
                ready = session.prepare([frame])
                prepare.append((time.perf_counter() - start) * 1e3)
                segments.append(session.timed_exits(ready)[1])
            turn = first // _BLOCK % len(names)  # so that none always follows the same one
            for name in names[turn:] + names[:turn]:
                session.point = name
                results[name] += [session.predict(frame) for frame in block]
    cost = np.mean(prepare) + np.cumsum(np.mean(segments, axis=0))
    rows: list[dict[str, Any]] = [
        {
            "point": name,
            "predicted_ms": float(np.mean([cost[result.exit - 1] for result in of_point])),
            "measured_ms": float(np.mean([result.latency_ms for result in of_point])),
        }
        for name, of_point in results.items()
    ]
    cells = "{point} | {predicted_ms:.2f} | {measured_ms:.2f} | {ratio:.3f}"
    ratios = [row | {"ratio": row["measured_ms"] / row["predicted_ms"]} for row in rows]
    numbers = ("predicted (ms)", "measured (ms)", "measured / predicted")
    console.print(table_of(ratios, cells, "point", numbers=numbers))
    return rows


if __name__ == "__main__":
    run_command(main)
