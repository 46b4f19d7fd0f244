"""Policies but for the level of their thresholds, and the curve that raising the level draws.

Free thresholds, one per exit, fit the tuning images: searched one by one they gained 1.8 points
there and none on others. So they lie on a line over the depth of the exits: a level, which trades
accuracy for time, and a slope.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.policies import (
    Confidence,
    Ensemble,
    Entropy,
    Patience,
    PatientConfidence,
    Policy,
)
from lgvit_edge.policies.base import PerExit, per_exit
from lgvit_edge.policies.scores import confidence, entropy
from lgvit_edge.tuning.costs import Costs
from lgvit_edge.tuning.outcome import Images

Floats = NDArray[np.float64]
# Quantiles of the scores: close together where nearly all images go on, which is where few errors
# are allowed.
LEVELS = np.unique(
    np.concatenate([np.linspace(0, 0.95, 48), 1 - np.geomspace(0.05, 1e-4, 16), [1]])
)


@dataclass(frozen=True)
class Shape:
    """A policy but for the level of its thresholds.

    Attributes:
        name: as in ``lgvit_edge.policies.rules.POLICIES``.
        temperature: one, or one per exit.
        decay: of an ensemble.
        slope: how much higher, as a share of all scores, the last exit's threshold lies than the
            first's.
        patience: of policies that have it.
    """

    name: str
    temperature: PerExit = 1.0
    decay: float = 0.0
    slope: float = 0.0
    patience: int = 1

    def policy(self, thresholds: tuple[float, ...]) -> Policy:
        """With these thresholds, ``[M]``."""
        level: PerExit = thresholds[0] if len(set(thresholds)) == 1 else thresholds
        if self.name == "entropy":
            return Entropy(level, self.temperature)
        if self.name == "ensemble":
            return Ensemble(level, self.decay, self.temperature)
        if self.name == "patient_confidence":
            return PatientConfidence(level, self.patience, self.temperature)
        if self.name == "patience":
            return Patience(self.patience)
        return Confidence(level, self.temperature)


@dataclass(frozen=True)
class Curve:
    """A shape at every level; arrays run from careless to careful.

    Attributes:
        shape: itself.
        thresholds: ``[k, M]``.
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
        return [self.shape.policy(tuple(map(float, row))) for row in self.thresholds]


class Scorer:
    """Draws curves on tuning images; scores are computed once per temperature and decay."""

    def __init__(self, images: Images, costs: Costs) -> None:
        self.images, self.costs = images, costs
        self.exits = images.exits
        self.baseline_right = images.baseline_right
        self._sums: dict[float, tuple[NDArray[np.float32], NDArray[np.bool_]]] = {}
        self._scores: dict[tuple[str, PerExit, float], NDArray[np.float32]] = {}
        ms = costs.ms
        # Depth of the exits by what it takes to reach them, from -0.5 to 0.5.
        span = max(ms[-2] - ms[0], 1e-9) if self.exits > 1 else 1.0
        self.depth = (ms[:-1] - ms[0]) / span - 0.5

    def curve(self, shape: Shape, thresholds: Floats | None = None) -> Curve:
        """A shape at every level, or at the thresholds ``[k, M]`` of another's curve."""
        _, right = self._summed(shape.decay)
        sign = -1 if shape.name == "entropy" else 1  # more entropy is less sure
        if shape.name == "patience":
            thresholds = np.zeros((1, self.exits))
            taken = [shape.policy((0.0,) * self.exits).replay(self.images.logits)[0] - 1]
        else:
            scores = self._score(shape)
            if thresholds is None:
                thresholds = sign * self._thresholds(scores, shape)
            # In float32, as the policies compare.
            levels = (sign * thresholds).astype(np.float32)
            taken = [self._taken(scores > row, shape.patience) for row in levels]
        rows = np.arange(len(self.images))
        hits = np.array([right[rows, exits].mean() for exits in taken])
        wrong = [(self.baseline_right & ~right[rows, exits]).mean() for exits in taken]
        spent = np.array([self.costs.ms[exits].mean() for exits in taken])
        return Curve(shape, thresholds, hits, np.array(wrong), spent)

    def _thresholds(self, scores: NDArray[np.float32], shape: Shape) -> Floats:
        places = np.clip(LEVELS[:, None] + shape.slope * self.depth[None], 0, 1)
        ordered = np.sort(scores, axis=None)
        last = len(ordered) - 1
        found = ordered[np.round(places * last).astype(np.intp)].astype(np.float64)
        # Seven digits are what float32 tells apart; a policy's numbers should be readable.
        low, high = (-1000.0, 0.0) if shape.name == "entropy" else (0.0, 1.0)
        return np.unique(np.clip(np.round(found, 7), low, high), axis=0)

    def _taken(self, stops: NDArray[np.bool_], patience: int) -> NDArray[np.intp]:
        """Exit 0..M of each image, given where its score is beyond the threshold, ``[n, M]``."""
        held = stops
        for back in range(1, patience):
            before = np.zeros_like(stops)
            before[:, back:] = stops[:, :-back]
            held = held & before
        return np.where(held.any(axis=1), held.argmax(axis=1), self.exits)

    def _score(self, shape: Shape) -> NDArray[np.float32]:
        """What is compared with the threshold, more being surer, ``[n, M]``."""
        kind = "entropy" if shape.name == "entropy" else "confidence"
        key = (kind, shape.temperature, shape.decay)
        if key not in self._scores:
            sums, _ = self._summed(shape.decay)
            by_exit = per_exit(shape.temperature, self.exits, "temperature")
            columns = [sums[:, m] * np.float32(1 / t) for m, t in enumerate(by_exit)]
            scored = [-entropy(c) if kind == "entropy" else confidence(c) for c in columns]
            self._scores[key] = np.stack(scored, axis=1)
        return self._scores[key]

    def _summed(self, decay: float) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Logits as an ensemble with this decay sees them, and whether their class is right."""
        if decay not in self._sums:
            sums = self.images.logits
            if decay:
                sums = sums.copy()
                for m in range(1, self.exits + 1):
                    sums[:, m] += np.float32(decay) * sums[:, m - 1]
            right = sums.argmax(axis=-1) == self.images.labels[:, None]
            self._sums[decay] = sums, right
        return self._sums[decay]
