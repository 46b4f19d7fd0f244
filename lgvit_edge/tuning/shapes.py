"""Policies but for the level of their thresholds, and the curve that raising the level draws.

Free thresholds, one per exit, fit the tuning images: searched one by one they gained 1.8 points
there and none on others. So they lie on a line over the depth of the exits: a level, which trades
accuracy for time, and a slope.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.errors import TuningError
from lgvit_edge.policies import Policy, ThresholdPolicy
from lgvit_edge.policies.evaluate import Images, evaluate
from lgvit_edge.tuning.costs import Costs

Floats = NDArray[np.float64]
# Quantiles of the scores: close together where nearly all images go on, which is where few errors
# are allowed.
LEVELS = np.unique(
    np.concatenate([np.linspace(0, 0.95, 48), 1 - np.geomspace(0.05, 1e-4, 16), [1]])
)
_STRAY = 0.01  # share of images that rounding may send to another exit


@dataclass(frozen=True)
class Shape:
    """A policy but for the level of its thresholds.

    Attributes:
        policy: whose thresholds, where it has any, do not count.
        slope: how much higher, as a share of all scores, the last exit's threshold lies than the
            first's.
    """

    policy: Policy
    slope: float = 0.0

    def at(self, thresholds: tuple[float, ...]) -> Policy:
        """With these thresholds, ``[M]``."""
        if not isinstance(self.policy, ThresholdPolicy):
            return self.policy
        return self.policy.at(thresholds[0] if len(set(thresholds)) == 1 else thresholds)


@dataclass(frozen=True)
class Curve:
    """A shape at every level; arrays run from careless to careful.

    Attributes:
        shape: itself.
        thresholds: ``[k, M]``; where the policy has none, one row of zeros.
        accuracy: ``[k]``, 0..1.
        errors: ``[k]``, share of images that the chain gets wrong and the baseline right.
        latency_ms: ``[k]``, mean.
    """

    shape: Shape
    thresholds: Floats
    accuracy: Floats
    errors: Floats
    latency_ms: Floats

    def policies(self) -> list[Policy]:
        """The policy at every level."""
        return [self.shape.at(tuple(map(float, row))) for row in self.thresholds]


class Scorer:
    """Draws curves on tuning images; a policy's scores are computed once."""

    def __init__(self, images: Images, costs: Costs) -> None:
        self.images, self.costs = images, costs
        self.exits = images.exits
        self.baseline_right = images.baseline_right
        self._scores: dict[Policy, tuple[NDArray[np.float32], NDArray[np.bool_]]] = {}
        self._checked: set[type[Policy]] = set()
        ms = costs.ms
        # Depth of the exits by what it takes to reach them, from -0.5 to 0.5.
        span = max(ms[-2] - ms[0], 1e-9) if self.exits > 1 else 1.0
        self.depth = (ms[:-1] - ms[0]) / span - 0.5

    def curve(self, shape: Shape, thresholds: Floats | None = None) -> Curve:
        """A shape at every level, or at the thresholds ``[k, M]`` of another's curve.

        Raises:
            TuningError: the policy does not stop where its ``held`` says.
        """
        policy = shape.policy
        if not isinstance(policy, ThresholdPolicy):
            found = evaluate(policy, self.images, self.costs.by_exit)
            figures = (found.accuracy, found.errors / len(self.images), found.latency_ms)
            return Curve(shape, np.zeros((1, self.exits)), *(np.array([f]) for f in figures))
        scores, right = self._scored(policy)
        sign = -1 if policy.measure.low_is_sure else 1
        if thresholds is None:
            # A zero without a sign, which JSON would show.
            thresholds = sign * self._thresholds(scores, shape, policy) + 0.0
        # In float32, as the policies compare.
        levels = (sign * thresholds).astype(np.float32)
        taken = [self._taken(policy.held(scores > row)) for row in levels]
        if type(policy) not in self._checked:
            self._check(shape, thresholds, taken)
        rows = np.arange(len(self.images))
        hits = np.array([right[rows, exits].mean() for exits in taken])
        wrong = [(self.baseline_right & ~right[rows, exits]).mean() for exits in taken]
        spent = np.array([self.costs.ms[exits].mean() for exits in taken])
        return Curve(shape, thresholds, hits, np.array(wrong), spent)

    def _check(self, shape: Shape, thresholds: Floats, taken: list[NDArray[np.intp]]) -> None:
        """Once a kind of policy: whether it really stops where the curve has it."""
        middle = len(taken) // 2
        policy = shape.at(tuple(map(float, thresholds[middle])))
        exits, _ = policy.replay(self.images.logits)
        stray = float((exits - 1 != taken[middle]).mean())
        if stray > _STRAY:
            raise TuningError(
                f"the policy {policy.name} cannot be tuned: {stray:.0%} of the images leave "
                f"elsewhere than its scores, its thresholds and {type(policy).__name__}.held say"
            )
        self._checked.add(type(policy))

    def _thresholds(
        self, scores: NDArray[np.float32], shape: Shape, policy: ThresholdPolicy
    ) -> Floats:
        places = np.clip(LEVELS[:, None] + shape.slope * self.depth[None], 0, 1)
        ordered = np.sort(scores, axis=None)
        last = len(ordered) - 1
        found = ordered[np.round(places * last).astype(np.intp)].astype(np.float64)
        # Seven digits are what float32 tells apart; a policy's numbers should be readable.
        low, high = sorted(policy.measure.sureness(limit) for limit in policy.limits())
        return np.unique(np.clip(np.round(found, 7), low, high), axis=0)

    def _taken(self, stops: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Exit 0..M of each image, given where it may stop, ``[n, M]``."""
        return np.where(stops.any(axis=1), stops.argmax(axis=1), self.exits)

    def _scored(self, policy: ThresholdPolicy) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """What is compared with thresholds, more being surer, ``[n, M]``; what is answered rightly.

        The latter ``[n, M + 1]``.
        """
        key = policy.at(policy.limits()[0])  # the same for all thresholds
        if key not in self._scores:
            tracker, labels = policy.start(self.exits), self.images.labels
            scores, right = [], []
            for exit in range(1, self.exits + 2):
                seen = tracker.combine(self.images.logits[:, exit - 1])
                right.append(seen.argmax(axis=-1) == labels)
                if exit <= self.exits:
                    scores.append(tracker.score(exit, seen))
            sign = np.float32(-1 if policy.measure.low_is_sure else 1)
            self._scores[key] = sign * np.stack(scores, axis=1), np.stack(right, axis=1)
        return self._scores[key]
