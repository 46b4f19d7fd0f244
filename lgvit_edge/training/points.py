"""Temperatures and thresholds of trained passes, from held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from lgvit_edge._support.terminal import say, table
from lgvit_edge.errors import DataError
from lgvit_edge.model import LGViT
from lgvit_edge.policies import Confidence, Ensemble, Policy
from lgvit_edge.policies.calibration import calibration_errors, temperatures
from lgvit_edge.policies.evaluate import ExitCosts, Images, Outcome, evaluate
from lgvit_edge.policies.text import typed
from lgvit_edge.training.report import exit_costs

DROPS = (0.0, 0.01)  # accuracy that a point may lose against the last pass, 0..1
_STEPS = 100  # number of thresholds tried


def chained(models: Sequence[LGViT], images: Sequence[Images]) -> tuple[Images, ExitCosts]:
    """Returns the logits and costs of one chain through all passes, whose exits are numbered on.

    The final classifier of every pass but the last is an exit too. Blocks are counted through all
    passes, so they are no measure of a speed-up: blocks of different passes differ in cost.

    Raises:
        DataError: the passes did not read the same images.
    """
    labels = images[0].labels
    if not all(np.array_equal(labels, other.labels) for other in images):
        counts = ", ".join(str(len(other)) for other in images)
        raise DataError(f"expected the same images in every pass, found {counts}")
    blocks, macs = list[int](), list[int]()
    for own in map(exit_costs, models):
        before = (blocks[-1], macs[-1]) if macs else (0, 0)
        blocks += [before[0] + block for block in own.blocks]
        macs += [before[1] + cost for cost in own.macs]
    fine = exit_costs(models[-1])
    logits = np.concatenate([one.logits for one in images], axis=1)
    costs = ExitCosts(tuple(blocks), fine.baseline_blocks, tuple(macs), fine.baseline_macs)
    return Images(logits, labels), costs


def half(images: Images, odd: int) -> Images:
    """Returns every other image: the even ones, or the ``odd``."""
    return Images(images.logits[odd::2], images.labels[odd::2])


def fastest(
    policies: Sequence[Policy], images: Images, costs: ExitCosts, *, drop: float
) -> Policy | None:
    """Returns the policy of the fewest MACs of those that lose at most ``drop`` of accuracy.

    Accuracy, 0..1, is lost against the last classifier; None where no policy does.
    """
    least = images.baseline_accuracy - drop - 1e-9
    tried = [evaluate(policy, images, costs) for policy in policies]
    good = [outcome for outcome in tried if outcome.accuracy >= least]
    return min(good, key=lambda outcome: outcome.macs).policy if good else None


def calibrated(
    models: Sequence[LGViT], measured: Sequence[Images], files: Sequence[Path]
) -> dict[str, Any]:
    """Returns, as JSON, what the passes know and the thresholds to begin with.

    One half of the images fits a temperature for each exit and chooses thresholds, the other half
    reports. ``measured`` holds each pass's logits on the same images.

    Raises:
        DataError: the passes did not read the same images, or there are fewer than two.
        MissingDependency: scipy is not installed.
    """
    images, costs = chained(models, measured)
    if len(images) < 2:
        raise DataError(f"expected at least two validation images, found {len(images)}")
    choosing, reporting = half(images, 0), half(images, 1)
    by_exit = temperatures(choosing)
    errors = [calibration_errors(reporting, t) for t in ((1.0,) * images.exits, by_exit)]
    levels = np.linspace(0, 1, _STEPS + 1).round(4).tolist()
    settings: list[Policy] = [Confidence(level, by_exit) for level in levels]
    settings += [Ensemble(level, temperature=by_exit) for level in levels]
    points = []
    for drop in DROPS:
        policy = fastest(settings, choosing, costs, drop=drop)
        if policy is not None:
            outcomes = [evaluate(policy, part, costs) for part in (choosing, reporting)]
            points.append({"drop": drop, **_point(policy, outcomes)})
    last = 0
    passes = []
    for model, file, own in zip(models, files, measured, strict=True):
        last += model.config.num_exits + 1
        passes.append(
            {
                "image_size": model.config.image_size,
                "file": file.name,
                "exits": [exit.block for exit in model.config.exits],
                "last_exit": last,  # of the chain, from 1
                "macs": costs.macs[last - 1],  # of an image that it answers, from the first pass on
                "accuracy": half(own, 1).accuracies,
            }
        )
    return {
        "images": {"choosing": len(choosing), "reporting": len(reporting)},
        "baseline": {"accuracy": reporting.baseline_accuracy, "macs": costs.baseline_macs},
        "passes": passes,
        "temperature": list(by_exit),
        "calibration_error": {"before": errors[0], "after": errors[1]},
        "points": points,
    }


def _point(policy: Policy, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    parts = zip(("choosing", "reporting"), outcomes, strict=True)
    kept = ("accuracy", "drop_error", "macs", "macs_speedup", "shares")
    return {
        "policy": policy.to_json(),
        "typed": typed(policy.to_json()),
        **{name: {k: outcome.to_json()[k] for k in kept} for name, outcome in parts},
    }


def shown(record: dict[str, Any], console: Console) -> None:
    """Prints the points: how many images each pass answers, and what that saves."""
    base, ends = record["baseline"]["accuracy"], [0, *(p["last_exit"] for p in record["passes"])]
    names = [f"by {one['image_size']} px" for one in record["passes"]]
    output = table(
        "may lose", "policy", numbers=("threshold", "MACs x", "accuracy", "change", *names)
    )
    for point in record["points"]:
        got = point["reporting"]
        shares = [sum(got["shares"][a:b]) for a, b in zip(ends, ends[1:], strict=False)]
        change = f"{100 * (got['accuracy'] - base):+.2f} +- {100 * got['drop_error']:.2f}"
        output.add_row(
            f"{100 * point['drop']:g} points",
            point["policy"]["name"],
            f"{point['policy']['threshold']:g}",
            f"{got['macs_speedup']:.2f}",
            f"{100 * got['accuracy']:.2f} %",
            change,
            *(f"{100 * share:.0f} %" for share in shares),
        )
    count = record["images"]
    say(
        f"thresholds chosen on {count['choosing']} images, figures from {count['reporting']} "
        f"others; the last pass alone: {100 * base:.2f} %",
        console,
    )
    console.print(output)
    if not any(point["reporting"]["macs_speedup"] > 1 for point in record["points"]):
        say(
            "these passes do not pay: the last one alone needs fewer MACs for its accuracy; train "
            "the coarse passes longer, or take other sizes",
            console,
        )
