"""From recorded logits to operating points: split, search, certify, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.bundle.points import Guarantee, OperatingPoint
from lgvit_edge.errors import DataError, TuningError, UsageError
from lgvit_edge.policies import Policy
from lgvit_edge.policies.evaluate import Images, Outcome, evaluate
from lgvit_edge.tuning.calibration import calibration_errors, temperatures
from lgvit_edge.tuning.certify import certified, images_needed
from lgvit_edge.tuning.costs import Costs
from lgvit_edge.tuning.front import Line
from lgvit_edge.tuning.goals import USUAL, Goal
from lgvit_edge.tuning.prune import Pruning, prune
from lgvit_edge.tuning.record import Recording
from lgvit_edge.tuning.search import SWEEP, policies_by, search
from lgvit_edge.tuning.shapes import Curve, Scorer, Shape

Progress = Callable[[int, int], None]
DROPS = (0.01, 0.02)
_LEAST_DROP = 0.005  # to compare chains at: more accuracy than this many cannot reach at all
_LEAST = 20  # images in a part: with fewer, accuracy is in steps of more than 5 points


@dataclass(frozen=True)
class TuneOptions:
    """What to look for, and how hard.

    Attributes:
        goal: what can be afforded; an empty one for ``goals.USUAL``.
        name: of the operating point; None for the goal's own.
        risk: share of images the chain may get wrong and the baseline right, to be certified; None
            for no certificate.
        delta: how often a certificate may be wrong.
        trials: of each policy.
        seed: of the split and the search.
    """

    goal: Goal = field(default_factory=Goal)
    name: str | None = None
    risk: float | None = None
    delta: float = 0.05
    trials: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what nothing could mean.

        Raises:
            UsageError: naming it.
        """
        for name, value in (("risk", self.risk), ("delta", self.delta)):
            if value is not None and not 0 < value < 1:
                raise UsageError(f"--{name} must lie between 0 and 1, found {value:g}")
        if self.name is not None and self.risk is None and not self.goal.text:
            raise UsageError("--name names one point: give a goal, such as --max-drop 0.01, too")


@dataclass(frozen=True)
class Tuned:
    """What was found; all figures are of the report's images, whose part no search has seen.

    Attributes:
        points: by name.
        front: policies that none is both faster and more accurate than on the tuning images, and
            the whole chain.
        sweep: the same of one confidence threshold for all exits.
        baseline_accuracy: top-1.
        images: how many each part had.
        costs: per image.
        pruning: exits that never pay; None where all do.
        calibration: per exit, temperature and calibration error before and after.
        more_images: how many to certify on would have certified the next faster point too.
        seconds: what the search took.
    """

    points: dict[str, OperatingPoint]
    front: list[Outcome]
    sweep: list[Outcome]
    baseline_accuracy: float
    images: dict[str, int]
    costs: Costs
    pruning: Pruning | None
    calibration: dict[str, list[float]]
    more_images: int | None
    seconds: float

    def gain(self) -> dict[str, Any]:
        """The front beside the sweep: accuracy at equal time, speed-up at equal accuracy."""
        front, sweep = Line.through(self.front), Line.through(self.sweep)
        grid = np.linspace(max(front.ms[0], sweep.ms[0]), min(front.ms[-1], sweep.ms[-1]), 101)
        above = front.accuracy_at(grid) - sweep.accuracy_at(grid)
        base = self.costs.baseline_ms
        speed_ups = {}
        for drop in DROPS:
            reached = [line.ms_at(self.baseline_accuracy - drop) for line in (front, sweep)]
            speed_ups[f"{drop:g}"] = [None if ms is None else base / ms for ms in reached]
        return {
            "mean_accuracy": float(above.mean()),
            "least_accuracy": float(above.min()),
            "speedup_at_drop": speed_ups,
        }


def tune(
    kept: Recording,
    manifest: Manifest,
    options: TuneOptions,
    *,
    report: Recording | None = None,
    progress: Progress = lambda done, total: None,
) -> Tuned:
    """Search operating points on some images, certify them on others, and report on yet others.

    Example:
        with Session.open("out/") as session:
            recording = collect(session, images, Path("out.logits.npy"))
            tuned = tune(recording, session.manifest, TuneOptions(Goal(max_drop=0.01)))

    Args:
        kept: logits and times; split by the seed, into halves to tune and to report on, or, with a
            risk, into a quarter, a half and a quarter to tune, certify and report on.
        manifest: of the bundle.
        options: what to look for.
        report: of other images, to report on; then ``kept`` has two parts alone.
        progress: called with trials done and trials in all.

    Raises:
        DataError: too few images, or all of one class.
        TuningError: no point reaches the goal, or none can be certified.
        UsageError: the bundle has no exits.
    """
    began = time.monotonic()
    if len(manifest.segments) < 2:
        raise UsageError("this bundle has no exits: there is nothing to tune")
    parts = _split(kept, options, report)
    tuning, reporting = parts["tune"], parts["report"]
    costs = kept.costs(manifest)
    scorer = Scorer(tuning, costs)
    curves = search(scorer, trials=options.trials, seed=options.seed, progress=progress)
    front = policies_by(curves, lambda curve: curve.accuracy)
    sweep = policies_by(curves[:1], lambda curve: curve.accuracy)
    maker = _Maker(costs, reporting, (report or kept).about)
    base = tuning.baseline_accuracy
    more = None
    named: dict[str, tuple[Outcome, str, Guarantee | None]]
    if options.risk is not None:
        sure, guarantee, more = _certify(curves, parts["certify"], options, kept, costs)
        candidates = [evaluate(p, tuning, costs.by_exit) for p in sure]
        goal, name = options.goal, options.name or options.goal.name
        chosen = candidates[-1]
        if goal.text:
            chosen = goal.choose(candidates, base, costs)
        errors = evaluate(chosen.policy, parts["certify"], costs.by_exit).errors
        bound = Guarantee(**(guarantee | {"errors": errors}))
        named = {name or f"risk-{options.risk:g}": (chosen, goal.text, bound)}
    else:
        candidates = [evaluate(p, tuning, costs.by_exit) for p in front]
        goals = {options.name or options.goal.name: options.goal}
        if not options.goal.text:
            goals = {name: Goal(max_drop=drop) for name, drop in USUAL.items()}
        named = {n: (g.choose(candidates, base, costs), g.text, None) for n, g in goals.items()}
    points = {
        name: maker.point(found.policy, text, bound) for name, (found, text, bound) in named.items()
    }
    by_exit = temperatures(tuning)
    plain = (1.0,) * tuning.exits
    return Tuned(
        points=points,
        front=[evaluate(p, reporting, costs.by_exit) for p in front],
        sweep=[evaluate(p, reporting, costs.by_exit) for p in sweep],
        baseline_accuracy=reporting.baseline_accuracy,
        images={name: len(part) for name, part in parts.items()},
        costs=costs,
        pruning=prune(
            tuning,
            reporting,
            costs,
            _shape(curves, named[list(named)[len(named) // 2]][0].policy),
            manifest,
            [max(_LEAST_DROP, base - found.accuracy) for found, _, _ in named.values()],
        ),
        calibration={
            "temperature": list(by_exit),
            "error": calibration_errors(reporting, plain),
            "error_calibrated": calibration_errors(reporting, by_exit),
        },
        more_images=more,
        seconds=time.monotonic() - began,
    )


def _shape(curves: Sequence[Curve], policy: Policy) -> Shape:
    """Whose thresholds a policy has; the plain sweep's, where the whole chain was chosen."""
    return next((curve.shape for curve in curves if policy in curve.policies()), SWEEP)


class _Maker:
    """Makes operating points of policies, with figures from the report's images."""

    def __init__(self, costs: Costs, images: Images, about: dict[str, Any]) -> None:
        self.costs, self.images, self.about = costs, images, about

    def point(self, policy: Policy, goal: str, guarantee: Guarantee | None) -> OperatingPoint:
        found = evaluate(policy, self.images, self.costs.by_exit)
        return OperatingPoint(
            policy=policy.to_json(),
            accuracy=found.accuracy,
            baseline_accuracy=self.images.baseline_accuracy,
            macs=found.macs,
            macs_speedup=found.macs_speedup,
            latency_ms=found.latency_ms,
            baseline_latency_ms=self.costs.baseline_ms,
            shares=found.shares,
            images=len(self.images),
            data_sha256=self.about["images"],
            device=self.about["device"],
            goal=goal,
            guarantee=guarantee,
        )


def _split(kept: Recording, options: TuneOptions, report: Recording | None) -> dict[str, Images]:
    shares = {"tune": 1}
    if options.risk is not None:
        shares["certify"] = 2 if report is None else 1
    if report is None:
        shares["report"] = 1
    rows = np.random.default_rng(options.seed).permutation(kept.usable)
    ends = np.cumsum([0, *shares.values()]) * len(rows) // sum(shares.values())
    parts = {
        name: _images(kept, np.sort(rows[first:last]))
        for name, first, last in zip(shares, ends, ends[1:], strict=False)
    }
    if report is not None:
        parts["report"] = _images(report, report.usable)
    smallest = min(parts, key=lambda name: len(parts[name]))
    least = max(_LEAST, kept.rows["segment_ms"].shape[1])
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


def _images(kept: Recording, rows: NDArray[np.intp]) -> Images:
    return Images(kept.rows["logits"][rows], kept.rows["label"][rows].astype(np.int64))


def _certify(
    curves: Sequence[Curve], images: Images, options: TuneOptions, kept: Recording, costs: Costs
) -> tuple[list[Policy], dict[str, Any], int | None]:
    """Policies that keep to the risk, careful ones first, and the images the next one needs."""
    risk, delta = options.risk or 0.0, options.delta
    path = policies_by(list(curves), lambda curve: -curve.errors)[::-1]  # ``Never`` first
    errors: list[int] = []
    for policy in path:
        errors.append(evaluate(policy, images, costs.by_exit).errors)
        if certified(errors, len(images), risk, delta) < len(errors):
            break
    count = certified(errors, len(images), risk, delta)
    following = None
    if count < len(errors):
        following = images_needed(errors[count] / len(images), risk, delta)
    if count < 2:  # the whole chain, which loses nothing and wins nothing
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
    guarantee = {
        "risk": risk,
        "delta": delta,
        "images": len(images),
        "data_sha256": kept.about["images"],
    }
    return path[:count], guarantee, following
