"""Exit policies: from the logits so far, stop or go on.

A policy is an immutable rule. ``start`` gives a tracker for one batch of images, which sees the
logits of one exit after the other. Every rule is applied per sample (a maximum over the batch would
let one image decide for all). The final classifier always stops.

Thresholds and temperatures are one number, or one per exit. Logits are divided by the temperature
before a score is taken of them: above 1 it calms an overconfident exit; well below 1 the score
looks at the first two classes alone, which ranks images better by how likely they are right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.errors import UsageError
from lgvit_edge.policies.base import (
    Mask,
    PerExit,
    Policy,
    Tracker,
    check_count,
    check_range,
    per_exit,
)
from lgvit_edge.policies.scores import Floats, confidence, entropy


class _Levels:
    """Thresholds and temperatures of a chain's exits."""

    def __init__(self, threshold: PerExit, temperature: PerExit, exits: int) -> None:
        self.thresholds = per_exit(threshold, exits)
        self.scales: tuple[float, ...] | None = None
        if temperature != 1.0:  # the usual case costs nothing between two segments
            self.scales = tuple(1 / t for t in per_exit(temperature, exits, "temperature"))

    def scaled(self, exit: int, logits: Floats) -> Floats:
        return logits if self.scales is None else logits * np.float32(self.scales[exit - 1])

    def confident(self, exit: int, logits: Floats) -> Mask:
        return confidence(self.scaled(exit, logits)) > self.thresholds[exit - 1]


def _check_temperature(value: PerExit) -> None:
    check_range(value, 0.01, 100.0, "temperature")


@dataclass(frozen=True)
class Confidence(Policy):
    """Stop when the confidence (Eq. 16) is greater than the threshold."""

    threshold: PerExit = 0.8
    temperature: PerExit = 1.0
    name = "confidence"

    def __post_init__(self) -> None:
        """Refuse what is no probability."""
        check_range(self.threshold, 0.0, 1.0)
        _check_temperature(self.temperature)

    def start(self, exits: int) -> Tracker:
        """See ``Policy.start``."""
        return _ConfidenceTracker(_Levels(self.threshold, self.temperature, exits))


class _ConfidenceTracker(Tracker):
    def __init__(self, levels: _Levels) -> None:
        self.levels = levels

    def step(self, exit: int, logits: Floats) -> Mask:
        return self.levels.confident(exit, logits)


@dataclass(frozen=True)
class Entropy(Policy):
    """Stop when the entropy, in nats, is below the threshold."""

    threshold: PerExit = 0.6
    temperature: PerExit = 1.0
    name = "entropy"

    def __post_init__(self) -> None:
        """Refuse what is no entropy."""
        check_range(self.threshold, 0.0, 1000.0)  # log C is never near
        _check_temperature(self.temperature)

    def start(self, exits: int) -> Tracker:
        """See ``Policy.start``."""
        return _EntropyTracker(_Levels(self.threshold, self.temperature, exits))


class _EntropyTracker(Tracker):
    def __init__(self, levels: _Levels) -> None:
        self.levels = levels

    def step(self, exit: int, logits: Floats) -> Mask:
        levels = self.levels
        return entropy(levels.scaled(exit, logits)) < levels.thresholds[exit - 1]


@dataclass(frozen=True)
class Ensemble(Policy):
    """Logits add up over the exits, each step back weighed ``decay`` times less.

    ``z_m = logits_m + decay * z_(m-1)``; stop when the confidence of ``z_m`` is greater than the
    threshold, and answer the class of ``z_m``. A class that exit after exit finds likely gathers
    evidence; the deepest answer, too, is of several classifiers and not of the last alone. With
    ``decay`` 0 it is ``Confidence``.
    """

    threshold: PerExit = 0.8
    decay: float = 0.5
    temperature: PerExit = 1.0
    name = "ensemble"

    def __post_init__(self) -> None:
        """Refuse what is no probability and weights that grow backwards."""
        check_range(self.threshold, 0.0, 1.0)
        check_range((self.decay,), 0.0, 1.0, "decay")  # one for all exits
        _check_temperature(self.temperature)

    def start(self, exits: int) -> Tracker:
        """See ``Policy.start``."""
        levels = _Levels(self.threshold, self.temperature, exits)
        return _EnsembleTracker(levels, np.float32(self.decay))


class _EnsembleTracker(_ConfidenceTracker):
    def __init__(self, levels: _Levels, decay: np.float32) -> None:
        super().__init__(levels)
        self.decay = decay
        self.sum: Floats | None = None

    def combine(self, logits: Floats) -> Floats:
        self.sum = logits if self.sum is None else logits + self.decay * self.sum
        return self.sum

    def keep(self, rows: NDArray[np.intp]) -> None:
        if self.sum is not None:
            self.sum = self.sum[rows]


@dataclass(frozen=True)
class Patience(Policy):
    """PABEE: stop when this many consecutive exits predict the same class.

    Counted as LGViT's authors do, the first of the agreeing exits included; PABEE's own paper
    counts agreements and says one less for the same rule.
    """

    patience: int = 2
    name = "patience"

    def __post_init__(self) -> None:
        """Refuse counts below 1."""
        check_count("patience", self.patience)

    def start(self, exits: int) -> Tracker:
        """See ``Policy.start``."""
        return _PatienceTracker(self.patience, None)


@dataclass(frozen=True)
class PatientConfidence(Policy):
    """PCEE: stop when this many consecutive exits are each more confident than the threshold."""

    threshold: PerExit = 0.5
    patience: int = 2
    temperature: PerExit = 1.0
    name = "patient_confidence"

    def __post_init__(self) -> None:
        """Refuse what is no probability and counts below 1."""
        check_range(self.threshold, 0.0, 1.0)
        check_count("patience", self.patience)
        _check_temperature(self.temperature)

    def start(self, exits: int) -> Tracker:
        """See ``Policy.start``."""
        return _PatienceTracker(self.patience, _Levels(self.threshold, self.temperature, exits))


class _PatienceTracker(Tracker):
    """Counts consecutive exits that agree with the one before, or that are confident."""

    def __init__(self, patience: int, levels: _Levels | None) -> None:
        self.patience, self.levels = patience, levels
        self.count: NDArray[np.intp] | None = None
        self.last: NDArray[np.intp] | None = None

    def step(self, exit: int, logits: Floats) -> Mask:
        if self.count is None:
            self.count = np.zeros(len(logits), np.intp)
        if self.levels is None:
            prediction = logits.argmax(axis=-1)
            agrees = self.last is not None and prediction == self.last
            self.count = np.where(agrees, self.count + 1, 1)
            self.last = prediction
        else:
            confident = self.levels.confident(exit, logits)
            self.count = np.where(confident, self.count + 1, 0)
        return self.count >= self.patience

    def keep(self, rows: NDArray[np.intp]) -> None:
        if self.count is not None:
            self.count = self.count[rows]
        if self.last is not None:
            self.last = self.last[rows]


@dataclass(frozen=True)
class FixedExit(Policy):
    """Every image leaves at this exit; M + 1 is the final classifier."""

    exit: int = 1
    name = "fixed"

    def __post_init__(self) -> None:
        """Refuse counts below 1."""
        check_count("exit", self.exit)

    def start(self, exits: int) -> Tracker:
        """See ``Policy.start``."""
        if self.exit > exits + 1:
            raise UsageError(f"expected an exit in 1..{exits + 1}, found {self.exit}")
        return _FixedTracker(self.exit)


_STOP, _GO = np.ones(1, np.bool_), np.zeros(1, np.bool_)


class _FixedTracker(Tracker):
    def __init__(self, exit: int) -> None:
        self.exit = exit

    def step(self, exit: int, logits: Floats) -> Mask:
        mask = _STOP if exit >= self.exit else _GO
        return mask if len(logits) == 1 else mask.repeat(len(logits))


@dataclass(frozen=True)
class Never(Policy):
    """No early exit: every image goes through the whole chain."""

    name = "never"

    def start(self, exits: int) -> Tracker:
        """See ``Policy.start``."""
        return _FixedTracker(exits + 1)
