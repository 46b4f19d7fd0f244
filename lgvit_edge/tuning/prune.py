"""Finds exits that never pay: their heads cost more time than early leaving saves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.policies.evaluate import Images
from lgvit_edge.tuning.costs import Costs
from lgvit_edge.tuning.front import Line, front
from lgvit_edge.tuning.shapes import Scorer, Shape

_WORTH = 0.002  # relative gain below which a change is noise


@dataclass(frozen=True)
class Pruning:
    """Says which exits to leave out of the chain, and what that gains."""

    kept: list[int]  # 1-based
    dropped: list[int]  # exits that cost more than they save
    gain: float  # speed-up over all exits at equal accuracy, on the report's images; 1 is none
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
    exits = range(1, tuning.exits + 1)
    removable = [e for e in exits if costs.head_macs[e - 1] is not None]
    most = min(len(removable), tuning.exits - 1)
    # Exits are removed one by one, down to a single one; the fastest of these chains is chosen.
    steps: list[tuple[float, list[int]]] = [(latency(tuning, []), [])]
    while len(steps) <= most:
        before = steps[-1][1]
        candidates = [sorted([*before, e]) for e in removable if e not in before]
        steps.append(min((latency(tuning, d), d) for d in candidates))
    dropped = min(steps)[1]
    if not dropped:
        return None
    kept = [e for e in exits if e not in dropped]
    whole, fewer = latency(report, []), latency(report, dropped)
    if fewer > whole * (1 - _WORTH):  # the gain on the tuning images was chance
        return None
    blocks: list[list[int]] = [[] for _ in manifest.passes]
    for exit in kept:
        if exit in removable:
            blocks[manifest.pass_numbers[exit - 1] - 1].append(
                manifest.segments[exit - 1].last_block
            )
    return Pruning(kept, dropped, whole / fewer, blocks)


def _latency(
    tuning: Images, costs: Costs, shape: Shape, drops: Sequence[float], on: Images, gone: list[int]
) -> float:
    """Mean latency over ``drops`` on some images, with thresholds chosen on the tuning images."""
    columns = [m for m in range(tuning.exits + 1) if m + 1 not in gone]
    costs = costs.without(gone) if gone else costs
    shape = Shape(shape.policy.among([m + 1 for m in columns[:-1]]), shape.slope)
    here, there = (Scorer(Images(i.logits[:, columns], i.labels), costs) for i in (tuning, on))
    curve = here.curve(shape)
    levels = front(
        range(len(curve.accuracy)),
        cost=lambda i: float(curve.latency_ms[i]),
        worth=lambda i: float(curve.accuracy[i]),
    )
    if on is not tuning:
        curve = there.curve(shape, curve.thresholds)
    order = sorted(levels, key=lambda i: float(curve.latency_ms[i]))
    line = Line(curve.latency_ms[order], curve.accuracy[order])
    reached = [line.ms_at(on.baseline_accuracy - drop) for drop in drops]
    # An accuracy that no level reaches takes the model without exits.
    return float(np.mean([costs.baseline_ms if ms is None else ms for ms in reached]))
