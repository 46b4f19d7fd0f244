"""Shapes: policies whose threshold level is left open, and the curve that raising it draws.

One free threshold per exit overfits: searched one by one, thresholds gained 1.8 points on the
tuning images and none on others. So they lie on a line over the depth of the exits, with a level,
which trades accuracy for time, and a slope.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.errors import TuningError
from lgvit_edge.policies import Policy, ThresholdPolicy, Tracker
from lgvit_edge.policies.evaluate import Images, evaluate
from lgvit_edge.tuning.costs import Costs

Floats = NDArray[np.float64]
# Quantiles of the scores; they are closer where nearly all images go on and few errors are allowed.
LEVELS = np.unique(
    np.concatenate([np.linspace(0, 0.95, 48), 1 - np.geomspace(0.05, 1e-4, 16), [1]])
)
_STRAY = 0.01  # share of images that rounding may send to another exit


@dataclass(frozen=True)
class Shape:
    """Describes a policy whose threshold level is left open."""

    policy: Policy  # any thresholds it has are ignored
    # How much higher, as a share of all scores, the last exit's threshold lies than the first's.
    slope: float = 0.0
    unread: tuple[int, ...] = ()  # exits where nobody stops, 1-based: their heads are left out

    def at(self, thresholds: tuple[float, ...]) -> Policy:
        """Returns the policy with these thresholds, ``[M]``."""
        if not isinstance(self.policy, ThresholdPolicy):
            return self.policy
        return self.policy.at(thresholds[0] if len(set(thresholds)) == 1 else thresholds)


@dataclass(frozen=True)
class Curve:
    """Holds what a shape gives at every level; arrays run from careless to careful."""

    shape: Shape
    thresholds: Floats  # ``[k, M]``; one row of zeros where the policy has none
    accuracy: Floats  # ``[k]``, 0..1
    errors: Floats  # ``[k]``, share of images that the chain gets wrong and the baseline right
    latency_ms: Floats  # ``[k]``, mean

    def policies(self) -> list[Policy]:
        """Returns the policy at every level."""
        return [self.shape.at(tuple(map(float, row))) for row in self.thresholds]


class Scorer:
    """Draws curves on tuning images; a policy's scores are computed once."""

    def __init__(self, images: Images, costs: Costs) -> None:
        self.images, self.costs = images, costs
        self.exits = images.exits
        self.baseline_right = images.baseline_right
        self._scores: dict[Any, tuple[NDArray[np.float32], NDArray[np.bool_]]] = {}
        self._checked: set[type[Policy]] = set()
        ms = costs.ms
        # Depth of each exit by the time it takes to reach it, from -0.5 to 0.5.
        span = max(ms[-2] - ms[0], 1e-9) if self.exits > 1 else 1.0
        self.depth = (ms[:-1] - ms[0]) / span - 0.5

    def curve(self, shape: Shape, thresholds: Floats | None = None) -> Curve:
        """Returns a shape's curve at every level, or at thresholds ``[k, M]`` of another curve.

        Raises:
            TuningError: the policy does not stop where its ``held`` says.
        """
        policy = shape.policy
        if not isinstance(policy, ThresholdPolicy):
            outcome = evaluate(policy, self.images, self.costs.by_exit)
            figures = (outcome.accuracy, outcome.errors / len(self.images), outcome.latency_ms)
            return Curve(shape, np.zeros((1, self.exits)), *(np.array([f]) for f in figures))
        scores, right = self._scored(shape)
        sign = -1 if policy.measure.low_is_sure else 1
        if thresholds is None:
            # Adding 0.0 removes the sign of a zero, which JSON would show.
            thresholds = sign * self._thresholds(scores, shape, policy) + 0.0
            thresholds[:, [exit - 1 for exit in shape.unread]] = policy.measure.surest
        # In float32, as the policies compare.
        levels = (sign * thresholds).astype(np.float32)
        stops = [policy.held(scores > row) for row in levels]
        exits = [np.where(s.any(axis=1), s.argmax(axis=1), self.exits) for s in stops]
        if type(policy) not in self._checked:
            self._check(shape, thresholds, exits[len(exits) // 2])
        rows = np.arange(len(self.images))
        accuracy = np.array([right[rows, e].mean() for e in exits])
        errors = np.array([(self.baseline_right & ~right[rows, e]).mean() for e in exits])
        read = [exit not in shape.unread for exit in range(1, self.exits + 1)]
        ms = np.array(self.costs.by_exit.without_heads(read).ms)
        latency_ms = np.array([ms[e].mean() for e in exits])
        return Curve(shape, thresholds, accuracy, errors, latency_ms)

    def _check(self, shape: Shape, thresholds: Floats, expected: NDArray[np.intp]) -> None:
        """Check, once per kind of policy, that the middle level really stops where expected."""
        policy = shape.at(tuple(map(float, thresholds[len(thresholds) // 2])))
        exits, _ = policy.replay(self.images.logits)
        stray = float((exits - 1 != expected).mean())
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
        read = [exit - 1 for exit in range(1, self.exits + 1) if exit not in shape.unread]
        ordered = np.sort(scores[:, read], axis=None)
        last = len(ordered) - 1
        quantiles = ordered[np.round(places * last).astype(np.intp)].astype(np.float64)
        # float32 has about seven digits; rounding to them keeps a policy's numbers readable.
        low, high = sorted(policy.measure.sureness(limit) for limit in policy.limits())
        if type(policy.start(self.exits)).combine is not Tracker.combine:
            # An exit with the surest threshold is left out, and what later ones say changes: only
            # the shape may leave one out.
            surest = np.float32(policy.measure.sureness(policy.measure.surest))
            high = min(high, float(np.nextafter(surest, np.float32(-np.inf))))
        return np.unique(np.clip(np.round(quantiles, 7), low, high), axis=0)

    def _scored(self, shape: Shape) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Scores, ``[n, M]``, more being surer; whether each answer is right, ``[n, M + 1]``.

        Those of exits that the shape leaves out are -inf and False.
        """
        policy = shape.policy
        assert isinstance(policy, ThresholdPolicy)
        key = policy.at(policy.limits()[0]), shape.unread  # the same for all thresholds
        if key not in self._scores:
            tracker, labels = policy.start(self.exits), self.images.labels
            sign = np.float32(-1 if policy.measure.low_is_sure else 1)
            scores, right = [], []
            for exit in range(1, self.exits + 2):
                if exit in shape.unread:
                    scores.append(np.full(len(labels), -sign * np.inf, np.float32))
                    right.append(np.zeros(len(labels), np.bool_))
                    continue
                combined = tracker.combine(self.images.logits[:, exit - 1])
                right.append(combined.argmax(axis=-1) == labels)
                if exit <= self.exits:
                    scores.append(tracker.score(exit, combined))
            self._scores[key] = sign * np.stack(scores, axis=1), np.stack(right, axis=1)
        return self._scores[key]
