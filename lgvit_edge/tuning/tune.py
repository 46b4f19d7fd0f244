"""Turns recorded logits into operating points: split, search, certify, report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.bundle.points import USUAL, Guarantee, OperatingPoint
from lgvit_edge.errors import DataError, TuningError, UsageError
from lgvit_edge.policies import Policy
from lgvit_edge.policies.calibration import calibration_errors, temperatures
from lgvit_edge.policies.evaluate import Images, Outcome, evaluate
from lgvit_edge.tuning.certify import certified, images_needed
from lgvit_edge.tuning.costs import Costs
from lgvit_edge.tuning.front import Line
from lgvit_edge.tuning.goals import Goal
from lgvit_edge.tuning.prune import Pruning, fewer_heads, prune, unread
from lgvit_edge.tuning.record import Recording
from lgvit_edge.tuning.search import SWEEP, Progress, policies_by, search
from lgvit_edge.tuning.shapes import Curve, Scorer

DROPS = (0.01, 0.02)
_LEAST_DROP = 0.005  # of accuracy, when chains are compared: many cannot reach more
_LEAST_IMAGES = 20  # in a part: with fewer, accuracy moves in steps of more than 5 points


@dataclass(frozen=True)
class TuneOptions:
    """Sets what tuning looks for, and how long it searches.

    Attributes:
        goal: limit on the loss or the time; an empty one means the three of ``points.USUAL``.
        name: of the operating point; None for the goal's name.
        risk: share of images that the chain may get wrong and the baseline right, to be certified;
            None for no certificate.
        delta: probability that a certificate is wrong.
        trials: number for each policy.
        seed: for the split and the search.
    """

    goal: Goal = field(default_factory=Goal)
    name: str | None = None
    risk: float | None = None
    delta: float = 0.05
    trials: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise UsageError for values out of range, and for a name without a goal."""
        for name, value in (("risk", self.risk), ("delta", self.delta)):
            if value is not None and not 0 < value < 1:
                raise UsageError(f"--{name} must lie between 0 and 1, found {value:g}")
        if self.name is not None and self.risk is None and not self.goal.text:
            raise UsageError("--name names one point: give a goal, such as --max-drop 0.01, too")


@dataclass(frozen=True)
class Tuned:
    """Holds the result of tuning; all figures are from the report images, unseen by the search."""

    points: dict[str, OperatingPoint]  # by name
    front: list[Outcome]  # the Pareto front on the tuning images, and ``Never``
    sweep: list[Outcome]  # the same for one confidence threshold at all exits
    baseline_accuracy: float  # top-1
    images: dict[str, int]  # number in each part
    costs: Costs  # per image
    pruning: Pruning | None  # exits that never pay, or that no point reads; None for none
    calibration: dict[str, list[float]]  # per exit, temperature, and errors before and after
    more_images: int | None  # number that would have certified the next faster point, too
    seconds: float  # duration of the search

    def gain(self) -> dict[str, Any]:
        """Compares the front with the sweep: accuracy at equal time, speed-up at equal accuracy."""
        front, sweep = Line.through(self.front), Line.through(self.sweep)
        grid = np.linspace(max(front.ms[0], sweep.ms[0]), min(front.ms[-1], sweep.ms[-1]), 101)
        gains = front.accuracy_at(grid) - sweep.accuracy_at(grid)
        base = self.costs.baseline_ms
        speed_ups = {}
        for drop in DROPS:
            reached = [line.ms_at(self.baseline_accuracy - drop) for line in (front, sweep)]
            speed_ups[f"{drop:g}"] = [None if ms is None else base / ms for ms in reached]
        return {
            "mean_accuracy": float(gains.mean()),
            "least_accuracy": float(gains.min()),
            "speedup_at_drop": speed_ups,
        }


def tune(
    recording: Recording,
    manifest: Manifest,
    options: TuneOptions,
    *,
    report: Recording | None = None,
    progress: Progress = lambda done, total: None,
) -> Tuned:
    """Searches operating points on some images, certifies them on others, reports on a third part.

    Example:
        with Session.open("out/") as session:
            recording = collect(session, images, Path("out.logits.npy"))
            tuned = tune(recording, session.manifest, TuneOptions(Goal(max_drop=0.01)))

    Args:
        recording: logits and times; the seed splits them into halves to tune and report on, or,
            with a risk, into a quarter, a half and a quarter to tune, certify and report on.
        manifest: of the bundle.
        options: what to look for.
        report: logits of other images to report on; ``recording`` then has no report part.
        progress: called with trials done and trials in all.

    Raises:
        DataError: too few images, or all of one class.
        TuningError: no point reaches the goal, or none can be certified.
        UsageError: the bundle has no exits.
    """
    began = time.monotonic()
    if len(manifest.segments) < 2:
        raise UsageError("this bundle has no exits: there is nothing to tune")
    parts = _split(recording, options, report)
    tuning, reporting = parts["tune"], parts["report"]
    costs = recording.costs(manifest)
    scorer = Scorer(tuning, costs)
    curves = search(scorer, trials=options.trials, seed=options.seed, progress=progress)
    curves += fewer_heads(scorer, curves, (_LEAST_DROP, *DROPS))
    front = policies_by(curves, lambda curve: curve.accuracy)
    sweep = policies_by(curves[:1], lambda curve: curve.accuracy)
    base = tuning.baseline_accuracy
    more = None
    named: dict[str, tuple[Outcome, str, Guarantee | None]]
    if options.risk is not None:
        certifying = parts["certify"]
        safe, more = _certify(curves, certifying, options, costs)
        candidates = [evaluate(p, tuning, costs.by_exit) for p in safe]
        goal, name = options.goal, options.name or options.goal.name
        chosen = goal.choose(candidates, base, costs) if goal.text else candidates[-1]
        bound = Guarantee(
            risk=options.risk,
            delta=options.delta,
            images=len(certifying),
            errors=evaluate(chosen.policy, certifying, costs.by_exit).errors,
            data_sha256=recording.about["images"],
        )
        named = {name or f"risk-{options.risk:g}": (chosen, goal.text, bound)}
    else:
        candidates = [evaluate(p, tuning, costs.by_exit) for p in front]
        goals = {options.name or options.goal.name: options.goal}
        if not options.goal.text:
            goals = {name: Goal(max_drop=drop) for name, drop in USUAL.items()}
        named = {n: (g.choose(candidates, base, costs), g.text, None) for n, g in goals.items()}
    points = {
        name: _point(outcome.policy, text, bound, reporting, costs, (report or recording).about)
        for name, (outcome, text, bound) in named.items()
    }
    by_exit = temperatures(tuning)
    outcomes = [outcome for outcome, _, _ in named.values()]
    if costs.ms_apart:
        pruning = unread([outcome.policy for outcome in outcomes], manifest)
    else:
        middle = outcomes[len(outcomes) // 2].policy
        # The shape that the middle point was drawn from; the plain sweep's for ``Never``.
        shape = next((curve.shape for curve in curves if middle in curve.policies()), SWEEP)
        drops = [max(_LEAST_DROP, base - outcome.accuracy) for outcome in outcomes]
        pruning = prune(tuning, reporting, costs, shape, manifest, drops)
    return Tuned(
        points=points,
        front=[evaluate(p, reporting, costs.by_exit) for p in front],
        sweep=[evaluate(p, reporting, costs.by_exit) for p in sweep],
        baseline_accuracy=reporting.baseline_accuracy,
        images={name: len(part) for name, part in parts.items()},
        costs=costs,
        pruning=pruning,
        calibration={
            "temperature": list(by_exit),
            "error": calibration_errors(reporting, (1.0,) * tuning.exits),
            "error_calibrated": calibration_errors(reporting, by_exit),
        },
        more_images=more,
        seconds=time.monotonic() - began,
    )


def _point(
    policy: Policy,
    goal: str,
    guarantee: Guarantee | None,
    images: Images,
    costs: Costs,
    about: dict[str, Any],
) -> OperatingPoint:
    outcome = evaluate(policy, images, costs.by_exit)
    return OperatingPoint(
        policy=policy.to_json(),
        accuracy=outcome.accuracy,
        baseline_accuracy=images.baseline_accuracy,
        macs=outcome.macs,
        macs_speedup=outcome.macs_speedup,
        latency_ms=outcome.latency_ms,
        baseline_latency_ms=costs.baseline_ms,
        shares=outcome.shares,
        images=len(images),
        data_sha256=about["images"],
        device=about["device"],
        goal=goal,
        guarantee=guarantee,
    )


def _split(
    recording: Recording, options: TuneOptions, report: Recording | None
) -> dict[str, Images]:
    shares = {"tune": 1}
    if options.risk is not None:
        shares["certify"] = 2 if report is None else 1
    if report is None:
        shares["report"] = 1
    rows = np.random.default_rng(options.seed).permutation(recording.usable)
    ends = np.cumsum([0, *shares.values()]) * len(rows) // sum(shares.values())
    parts = {
        name: recording.images(np.sort(rows[first:last]))
        for name, first, last in zip(shares, ends, ends[1:], strict=False)
    }
    if report is not None:
        parts["report"] = report.images(report.usable)
    smallest = min(parts, key=lambda name: len(parts[name]))
    least = max(_LEAST_IMAGES, recording.rows["segment_ms"].shape[1])
    if len(parts[smallest]) < least:
        raise DataError(
            f"expected at least {least} images in each part ({', '.join(parts)}), found "
            f"{len(parts[smallest])} to {smallest} on; give more images"
        )
    for name, part in parts.items():
        if len(np.unique(part.labels)) < 2:
            raise DataError(
                f"all {len(part)} images of the part {name!r} are of one class: accuracy on them "
                "says nothing about the others; expected a sub-folder for each class"
            )
    return parts


def _certify(
    curves: Sequence[Curve], images: Images, options: TuneOptions, costs: Costs
) -> tuple[list[Policy], int | None]:
    """Policies certified for the risk, careful ones first, and the images that the next needs."""
    risk, delta = options.risk or 0.0, options.delta
    path = policies_by(list(curves), lambda curve: -curve.errors)[::-1]  # ``Never`` first
    errors: list[int] = []
    count = 0
    while count == len(errors) < len(path):  # up to the first that is not certified
        errors.append(evaluate(path[count], images, costs.by_exit).errors)
        count = certified(errors, len(images), risk, delta)
    following = None
    if count < len(errors):
        following = images_needed(errors[count] / len(images), risk, delta)
    if count < 2:  # only ``Never``, which loses and gains nothing
        least = images_needed(0.0, risk, delta)
        why = f"even without a single error {least} would be needed"
        if count == 1:
            more = f"{following} images would do" if following else "more images would not help"
            why = (
                f"the most careful point gets {errors[count]} of them wrong that the baseline gets "
                f"right; without any error {least} would be needed, at its share of errors {more}"
            )
        raise TuningError(
            f"{len(images)} images to certify on certify nothing at --risk {risk:g} --delta "
            f"{delta:g}: {why} (half of the images given certify)"
        )
    return path[:count], following
