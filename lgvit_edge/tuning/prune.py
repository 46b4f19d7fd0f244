"""Finds exits that do not pay: their heads cost more time than early leaving saves.

Where a session can leave heads out, points are tuned without them. Elsewhere the answer is an
export without these exits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.policies import Confidence, Policy, ThresholdPolicy
from lgvit_edge.policies.evaluate import Images
from lgvit_edge.tuning.costs import Costs
from lgvit_edge.tuning.front import Line, front
from lgvit_edge.tuning.shapes import Curve, Scorer, Shape

_WORTH = 0.002  # relative gain below which a change is noise


@dataclass(frozen=True)
class Pruning:
    """Says which exits to leave out of the chain, and what that gains."""

    kept: list[int]  # 1-based
    dropped: list[int]  # exits that cost more than they save, or that no point reads
    # Speed-up over all exits at equal accuracy, on the report's images; 1 is none. None where
    # sessions leave the heads out as it is.
    gain: float | None
    blocks: list[list[int]]  # of each pass, the block before each exit to keep


def prune(
    tuning: Images,
    report: Images,
    costs: Costs,
    shape: Shape,
    manifest: Manifest,
    drops: Sequence[float],
) -> Pruning | None:
    """Finds the exits whose removal makes the chain faster at equal accuracy.

    The tuning images decide, those of the report tell the gain. Chains are compared at the losses
    of accuracy in ``drops``, 0..1, with thresholds of this shape. An exit that ends a pass stays:
    it costs nothing beyond the pass. The answer is None where every exit pays.
    """
    latency = partial(_latency, tuning, costs, shape, drops)
    removable = [exit for exit, macs in enumerate(costs.head_macs, 1) if macs is not None]
    removals = _removals(tuning, costs, shape, drops, removable)
    steps = [(latency(tuning, []), list[int]()), *removals]
    dropped = min(steps)[1]
    if not dropped:
        return None
    whole, fewer = latency(report, []), latency(report, dropped)
    if fewer > whole * (1 - _WORTH):  # the gain on the tuning images was chance
        return None
    return _without(dropped, whole / fewer, manifest)


def unread(policies: Sequence[Policy], manifest: Manifest) -> Pruning | None:
    """Returns the exits whose heads no policy reads; None where there are none."""
    exits = len(manifest.segments) - 1
    read = [policy.exits_read(exits) for policy in policies if policy.stops_early(exits)]
    apart = manifest.head_macs_apart
    dropped = [e for e in range(1, exits + 1) if apart[e - 1] and not any(r[e - 1] for r in read)]
    return _without(dropped, None, manifest) if read and dropped else None


def _without(dropped: list[int], gain: float | None, manifest: Manifest) -> Pruning:
    kept = [e for e in range(1, len(manifest.segments)) if e not in dropped]
    blocks: list[list[int]] = [[] for _ in manifest.passes]
    for exit in kept:
        if manifest.segments[exit - 1].head_macs is not None:
            blocks[manifest.pass_numbers[exit - 1] - 1].append(
                manifest.segments[exit - 1].last_block
            )
    return Pruning(kept, dropped, gain, blocks)


def fewer_heads(scorer: Scorer, curves: Sequence[Curve], drops: Sequence[float]) -> list[Curve]:
    """Returns the curves once more, with ever more heads left out: those that pay least first.

    Which pay is found with one confidence threshold, at the losses of accuracy in ``drops``, 0..1.
    There are none where a session cannot leave heads out, or a policy needs all of them.
    """
    costs = scorer.costs
    removable = [exit for exit, macs in enumerate(costs.macs_apart, 1) if macs]
    removals = _removals(scorer.images, costs, Shape(Confidence()), drops, removable)
    shapes = [
        replace(curve.shape, unread=tuple(gone))
        for curve in curves
        for _, gone in removals
        if _can_leave_out(curve.shape.policy, scorer.exits)
    ]
    return [scorer.curve(shape) for shape in dict.fromkeys(shapes)]


def _can_leave_out(policy: Policy, exits: int) -> bool:
    """Whether an exit at the surest threshold is not read."""
    if not isinstance(policy, ThresholdPolicy):
        return False
    low, surest, high = (
        policy.measure.sureness(n) for n in (*policy.limits(), policy.measure.surest)
    )
    return low <= surest <= high and not any(policy.at(policy.measure.surest).exits_read(exits))


def _removals(
    images: Images, costs: Costs, shape: Shape, drops: Sequence[float], removable: Sequence[int]
) -> list[tuple[float, list[int]]]:
    """Removes exits one by one, down to a single one; returns latency and those gone, each time."""
    steps: list[tuple[float, list[int]]] = []
    gone: list[int] = []
    while len(steps) < min(len(removable), images.exits - 1):
        candidates = [sorted([*gone, e]) for e in removable if e not in gone]
        steps.append(min((_latency(images, costs, shape, drops, images, d), d) for d in candidates))
        gone = steps[-1][1]
    return steps


def _latency(
    tuning: Images, costs: Costs, shape: Shape, drops: Sequence[float], on: Images, gone: list[int]
) -> float:
    """Mean latency over ``drops`` on some images, with thresholds chosen on the tuning images."""
    columns = [m for m in range(tuning.exits + 1) if m + 1 not in gone]
    costs = costs.without(gone) if gone else costs
    shape = Shape(shape.policy.among([m + 1 for m in columns[:-1]]), shape.slope)

    def scorer(images: Images) -> Scorer:
        return Scorer(Images(images.logits[:, columns], images.labels), costs)

    curve = scorer(tuning).curve(shape)
    levels = front(
        range(len(curve.accuracy)),
        cost=lambda i: float(curve.latency_ms[i]),
        worth=lambda i: float(curve.accuracy[i]),
    )
    if on is not tuning:
        curve = scorer(on).curve(shape, curve.thresholds)
    order = sorted(levels, key=lambda i: float(curve.latency_ms[i]))
    line = Line(curve.latency_ms[order], curve.accuracy[order])
    reached = [line.ms_at(on.baseline_accuracy - drop) for drop in drops]
    # An accuracy that no level reaches takes the model without exits.
    return float(np.mean([costs.baseline_ms if ms is None else ms for ms in reached]))
