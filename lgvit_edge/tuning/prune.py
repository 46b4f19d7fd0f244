"""Exits that never pay: their heads cost more than the images that leave there save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.policies.evaluate import Images
from lgvit_edge.tuning.costs import Costs
from lgvit_edge.tuning.front import Line, front
from lgvit_edge.tuning.shapes import Scorer, Shape

_WORTH = 0.002  # relative gain below which a change is noise


@dataclass(frozen=True)
class Pruning:
    """A chain with fewer exits.

    Attributes:
        kept: exits to keep, 1-based.
        dropped: exits that cost more than they save.
        gain: speed-up over the chain with all exits at equal accuracy, on the report's images;
            1 is none.
        blocks: after which the kept exits lie.
    """

    kept: list[int]
    dropped: list[int]
    gain: float
    blocks: list[int]


def prune(
    tuning: Images,
    report: Images,
    costs: Costs,
    shape: Shape,
    manifest: Manifest,
    drops: Sequence[float],
) -> Pruning | None:
    """Leave out one exit after the other while that makes the chain faster at equal accuracy.

    Args:
        tuning: images to decide on.
        report: images to say on what it gives.
        costs: of the chain with all exits.
        shape: whose thresholds are swept.
        manifest: of the bundle.
        drops: accuracy given up, on the tuning images, at which chains are compared.

    Returns:
        None where every exit pays, or the bundle does not say what its heads cost.
    """
    if costs.head_ms is None:
        return None

    def latency(other: Images, dropped: list[int]) -> float:
        return _latency(tuning, other, costs, shape, dropped, drops)

    everyone = range(1, tuning.exits + 1)
    # Down to a single exit, and back to where the chain was fastest.
    steps: list[tuple[float, list[int]]] = [(latency(tuning, []), [])]
    while len(steps) < tuning.exits:
        before = steps[-1][1]
        tried = [sorted([*before, e]) for e in everyone if e not in before]
        steps.append(min((latency(tuning, d), d) for d in tried))
    dropped = min(steps)[1]
    if not dropped:
        return None
    kept = [e for e in everyone if e not in dropped]
    whole, fewer = (latency(report, d) for d in ([], dropped))
    if fewer > whole * (1 - _WORTH):  # what helped on the tuning images was chance
        return None
    blocks = [manifest.segments[e - 1].last_block for e in kept]
    return Pruning(kept, dropped, whole / fewer, blocks)


def _latency(
    tuning: Images,
    other: Images,
    costs: Costs,
    shape: Shape,
    dropped: list[int],
    drops: Sequence[float],
) -> float:
    """Mean over ``drops`` of the latency at that accuracy; the tuning images give the levels."""
    kept = [m for m in range(tuning.exits + 1) if m + 1 not in dropped]
    costs = costs.without(dropped) if dropped else costs
    shape = Shape(shape.policy.among([m + 1 for m in kept[:-1]]), shape.slope)
    here, there = (Scorer(Images(i.logits[:, kept], i.labels), costs) for i in (tuning, other))
    found = here.curve(shape)
    levels = front(
        range(len(found.accuracy)),
        cost=lambda i: float(found.latency_ms[i]),
        worth=lambda i: float(found.accuracy[i]),
    )
    if other is not tuning:
        found = there.curve(shape, found.thresholds)
    order = sorted(levels, key=lambda i: float(found.latency_ms[i]))
    line = Line(found.latency_ms[order], found.accuracy[order])
    wanted = other.baseline_accuracy
    reached = [line.ms_at(wanted - drop) for drop in drops]
    # What no level reaches takes the whole chain.
    return float(np.mean([costs.ms[-1] if ms is None else ms for ms in reached]))
