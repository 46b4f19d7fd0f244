"""The exit policies: rules that decide, from the logits so far, whether an image stops.

Every rule is applied per sample, because a maximum over the batch would let one image decide for
all. The final classifier always stops.

Thresholds and temperatures are one number, or one per exit. Logits are divided by the temperature
before scoring. Above 1 it corrects an overconfident exit. Well below 1 the score depends on the two
most likely classes only, which ranks images better by how likely their answer is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.errors import UsageError
from lgvit_edge.policies.base import (
    Mask,
    PerExit,
    Policy,
    Rule,
    ThresholdPolicy,
    ThresholdTracker,
    Tracker,
    count,
    number,
    numbers,
    register_policy,
)
from lgvit_edge.policies.scores import ENTROPY, Floats

_TEMPERATURES = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4)


class _ConfidencePolicy(ThresholdPolicy):
    """Compares a probability with the threshold."""

    @classmethod
    def settings(cls, exits: int, steps: int = 22) -> Sequence[Policy]:
        """See ``Policy.settings``."""
        even = np.linspace(0.05, 0.95, max(2, steps - 3)).round(4)
        # The last ones are close to 1, for goals that allow few errors.
        return [cls().at(level) for level in (*even.tolist(), 0.97, 0.99, 0.999)]


@register_policy
@dataclass(frozen=True)
class Confidence(_ConfidencePolicy):
    """Stops an image when the confidence (Eq. 16) is greater than the threshold."""

    threshold: PerExit = numbers(0.8, 0.0, 1.0)
    temperature: PerExit = numbers(1.0, 0.01, 100.0)
    name = "confidence"
    label = "confidence"
    help = "the probability of the most likely class is above it"
    example = "confidence:0.8"
    averages = True
    searched = {"temperature": _TEMPERATURES}
    calibrated = True


@register_policy
@dataclass(frozen=True)
class Entropy(ThresholdPolicy):
    """Stops an image when the entropy, in nats, is below the threshold."""

    threshold: PerExit = numbers(0.6, 0.0, 1000.0)  # log C is never near
    temperature: PerExit = numbers(1.0, 0.01, 100.0)
    name = "entropy"
    label = "entropy"
    help = "the entropy, in nats, is below it"
    example = "entropy:0.6"
    averages = True
    measure = ENTROPY
    searched = {"temperature": _TEMPERATURES}
    calibrated = True

    @classmethod
    def settings(cls, exits: int, steps: int = 22) -> Sequence[Policy]:
        """See ``Policy.settings``."""
        return [cls(float(nats)) for nats in np.geomspace(5, 0.001, steps)]


@register_policy
@dataclass(frozen=True)
class Ensemble(_ConfidencePolicy):
    """Stops an image when the confidence of logits summed over the exits exceeds the threshold.

    ``z_m = logits_m + decay * z_(m-1)`` decides and answers: a class that several exits find likely
    gains weight. With ``decay`` 0 it is ``Confidence``. An exit with a threshold of 1, where none
    can stop, is left out of the sum.
    """

    threshold: PerExit = numbers(0.8, 0.0, 1.0)
    decay: float = number(0.5, 0.0, 1.0)  # above 1, weights would grow backwards
    temperature: PerExit = numbers(1.0, 0.01, 100.0)
    name = "ensemble"
    label = "ensemble of exits"
    help = "as confidence, with logits summed over the exits, earlier ones with less weight"
    example = "ensemble:0.9:0.5"
    averages = True
    searched = {"temperature": _TEMPERATURES, "decay": (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)}

    def start(self, exits: int) -> Tracker:
        """See ``Policy.start``."""
        return _EnsembleTracker(self, exits)


class _EnsembleTracker(ThresholdTracker):
    def __init__(self, policy: Ensemble, exits: int) -> None:
        super().__init__(policy, exits)
        self.decay = np.float32(policy.decay)
        self.sum: Floats | None = None

    def reads(self, exit: int) -> bool:
        return self.may_stop(exit)

    def combine(self, logits: Floats) -> Floats:
        self.sum = logits if self.sum is None else logits + self.decay * self.sum
        return self.sum

    def keep(self, rows: NDArray[np.intp]) -> None:
        if self.sum is not None:
            self.sum = self.sum[rows]


@register_policy
@dataclass(frozen=True)
class Patience(Policy):
    """Stops an image when this many consecutive exits predict the same class (PABEE).

    The count includes the first of the agreeing exits, as in LGViT. The PABEE paper counts
    agreements, which is one less for the same rule.
    """

    patience: int = count(2)
    name = "patience"
    label = "patience (PABEE)"
    help = "so many exits in a row predict the same class"
    example = "patience:2"

    def start(self, exits: int) -> Tracker:
        """See ``Policy.start``."""
        return _PatienceTracker(self.patience)

    @classmethod
    def settings(cls, exits: int, steps: int = 22) -> Sequence[Policy]:
        """See ``Policy.settings``."""
        return [cls(patience) for patience in range(1, exits + 1)]


class _PatienceTracker(Tracker):
    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.count: NDArray[np.intp] | None = None
        self.last: NDArray[np.intp] | None = None

    def step(self, exit: int, logits: Floats) -> Mask:
        prediction = logits.argmax(axis=-1)
        if self.count is None or self.last is None:
            self.count = np.ones(len(logits), np.intp)
        else:
            self.count = np.where(prediction == self.last, self.count + 1, 1)
        self.last = prediction
        return self.count >= self.patience

    def keep(self, rows: NDArray[np.intp]) -> None:
        if self.count is not None and self.last is not None:
            self.count, self.last = self.count[rows], self.last[rows]


@register_policy
@dataclass(frozen=True)
class PatientConfidence(_ConfidencePolicy):
    """Stops an image when this many consecutive exits are above the threshold (PCEE)."""

    threshold: PerExit = numbers(0.5, 0.0, 1.0)
    patience: int = count(2)
    temperature: PerExit = numbers(1.0, 0.01, 100.0)
    name = "patient_confidence"
    label = "patience and confidence (PCEE)"
    help = "as confidence, at so many exits in a row"
    example = "patient_confidence:0.5:2"
    searched = {"temperature": _TEMPERATURES, "patience": range(2, 4)}
    calibrated = True

    def start(self, exits: int) -> Tracker:
        """See ``Policy.start``."""
        return _PatientTracker(self, exits)

    def held(self, surer: Mask) -> Mask:
        """See ``ThresholdPolicy.held``."""
        held = surer.copy()
        for back in range(1, self.patience):
            held[:, back:] &= surer[:, :-back]
            held[:, :back] = False
        return held


class _PatientTracker(ThresholdTracker):
    def __init__(self, policy: PatientConfidence, exits: int) -> None:
        super().__init__(policy, exits)
        self.patience = policy.patience
        self.count = np.zeros(1, np.intp)  # of all rows alike, until the first exit

    def step(self, exit: int, logits: Floats) -> Mask:
        self.count = np.where(super().step(exit, logits), self.count + 1, 0)
        return self.count >= self.patience

    def keep(self, rows: NDArray[np.intp]) -> None:
        self.count = self.count[rows]


@register_policy
@dataclass(frozen=True)
class FixedExit(Policy):
    """Stops every image at this exit; M + 1 is the final classifier.

    All heads on the way run, as benchmarks need it that force exits.
    """

    exit: int = count(1)
    name = "fixed"
    label = "one exit for all"
    help = "it reaches this exit"
    example = "fixed:3"
    averages = True

    def start(self, exits: int) -> Tracker:
        """See ``Policy.start``."""
        if self.exit > exits + 1:
            raise UsageError(f"expected an exit in 1..{exits + 1}, found {self.exit}")
        return _FixedTracker(self.exit, exits)


_STOP, _GO = np.ones(1, np.bool_), np.zeros(1, np.bool_)


class _FixedTracker(Tracker):
    def __init__(self, exit: int, exits: int) -> None:
        self.exit, self.exits = exit, exits

    def rule(self) -> Rule:
        # Every probability is above -1, and none above 2.
        thresholds = tuple(-1.0 if e >= self.exit else 2.0 for e in range(1, self.exits + 1))
        return Rule(self.measure, thresholds, (1.0,) * self.exits)

    def step(self, exit: int, logits: Floats) -> Mask:
        mask = _STOP if exit >= self.exit else _GO
        return mask if len(logits) == 1 else mask.repeat(len(logits))


@register_policy
@dataclass(frozen=True)
class Never(Policy):
    """Never stops early: the final classifier answers, at the cost of the model without exits."""

    name = "never"
    label = "no exits"
    help = "it reaches the final classifier"
    example = "never"
    averages = True

    def start(self, exits: int) -> Tracker:
        """See ``Policy.start``."""
        return _NeverTracker(exits + 1, exits)


class _NeverTracker(_FixedTracker):
    def reads(self, exit: int) -> bool:
        return False
