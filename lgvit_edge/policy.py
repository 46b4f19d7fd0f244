"""Exit policies: from the logits so far, stop or go on.

A policy is an immutable rule. ``start`` gives a tracker for one batch of images, which sees the
logits of one exit after the other. Every rule is applied per sample (a maximum over the batch would
let one image decide for all). The final classifier always stops.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.errors import UsageError
from lgvit_edge.scores import Floats, confidence, entropy

Mask = NDArray[np.bool_]
Thresholds = float | tuple[float, ...]


class Tracker(ABC):
    """A policy's state for the images still in the chain."""

    @abstractmethod
    def step(self, exit: int, logits: Floats) -> Mask:
        """Which rows stop at ``exit`` (1-based), given its logits ``[B, C] float32``."""

    def keep(self, rows: NDArray[np.intp]) -> None:  # noqa: B027 - most policies remember nothing
        """Forget all rows but these."""


class Policy(ABC):
    """When to stop. Subclasses are frozen dataclasses."""

    name: str

    @abstractmethod
    def start(self, exits: int) -> Tracker:
        """A tracker for a new batch in a chain with ``exits`` exits before the final one.

        Raises:
            UsageError: per-exit thresholds do not match ``exits``, or there is no such exit.
        """

    def select(self, logits: Floats) -> NDArray[np.intp]:
        """Replay the policy on all exits' logits.

        Args:
            logits: ``[B, M + 1, C] float32``.

        Returns:
            The exit each image takes, ``[B]``, in 1..M + 1.
        """
        count, total = logits.shape[:2]
        tracker = self.start(total - 1)
        chosen = np.full(count, total, np.intp)
        rows = np.arange(count)
        for exit in range(1, total):
            stop = tracker.step(exit, logits[rows, exit - 1])
            chosen[rows[stop]] = exit
            going = np.flatnonzero(~stop)
            rows = rows[going]
            tracker.keep(going)
        return chosen

    def to_json(self) -> dict[str, Any]:
        """``from_json`` reads it back."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {
            "name": self.name,
            **{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()},
        }


def _per_exit(value: Thresholds, exits: int) -> tuple[float, ...]:
    if not isinstance(value, tuple):
        return (float(value),) * exits
    if len(value) != exits:
        raise UsageError(
            f"expected one threshold or {exits}, one per exit before the final classifier; "
            f"found {len(value)}"
        )
    return value


def _check_thresholds(value: Thresholds, low: float, high: float) -> None:
    for number in value if isinstance(value, tuple) else (value,):
        is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
        if not is_number or not low <= number <= high:
            raise UsageError(f"a threshold must be in {low:g}..{high:g}, found {number!r}")


@dataclass(frozen=True)
class Confidence(Policy):
    """Stop when the confidence (Eq. 16) is greater than the threshold, one or one per exit."""

    threshold: Thresholds = 0.8
    name = "confidence"

    def __post_init__(self) -> None:
        """Refuse what is no probability."""
        _check_thresholds(self.threshold, 0.0, 1.0)

    def start(self, exits: int) -> Tracker:
        """See ``Policy.start``."""
        return _ConfidenceTracker(_per_exit(self.threshold, exits))


class _ConfidenceTracker(Tracker):
    def __init__(self, thresholds: tuple[float, ...]) -> None:
        self.thresholds = thresholds

    def step(self, exit: int, logits: Floats) -> Mask:
        return confidence(logits) > self.thresholds[exit - 1]


@dataclass(frozen=True)
class Entropy(Policy):
    """Stop when the entropy, in nats, is below the threshold, one or one per exit."""

    threshold: Thresholds = 0.6
    name = "entropy"

    def __post_init__(self) -> None:
        """Refuse what is no entropy."""
        _check_thresholds(self.threshold, 0.0, 1000.0)  # log C is never near

    def start(self, exits: int) -> Tracker:
        """See ``Policy.start``."""
        return _EntropyTracker(_per_exit(self.threshold, exits))


class _EntropyTracker(Tracker):
    def __init__(self, thresholds: tuple[float, ...]) -> None:
        self.thresholds = thresholds

    def step(self, exit: int, logits: Floats) -> Mask:
        return entropy(logits) < self.thresholds[exit - 1]


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
        _check_count("patience", self.patience)

    def start(self, exits: int) -> Tracker:
        """See ``Policy.start``."""
        return _PatienceTracker(self.patience, None)


@dataclass(frozen=True)
class PatientConfidence(Policy):
    """PCEE: stop when this many consecutive exits are each more confident than the threshold."""

    threshold: Thresholds = 0.5
    patience: int = 2
    name = "patient_confidence"

    def __post_init__(self) -> None:
        """Refuse what is no probability and counts below 1."""
        _check_thresholds(self.threshold, 0.0, 1.0)
        _check_count("patience", self.patience)

    def start(self, exits: int) -> Tracker:
        """See ``Policy.start``."""
        return _PatienceTracker(self.patience, _per_exit(self.threshold, exits))


class _PatienceTracker(Tracker):
    """Counts consecutive exits that agree with the one before, or that are confident."""

    def __init__(self, patience: int, thresholds: tuple[float, ...] | None) -> None:
        self.patience, self.thresholds = patience, thresholds
        self.count: NDArray[np.intp] | None = None
        self.last: NDArray[np.intp] | None = None

    def step(self, exit: int, logits: Floats) -> Mask:
        if self.count is None:
            self.count = np.zeros(len(logits), np.intp)
        if self.thresholds is None:
            prediction = logits.argmax(axis=-1)
            agrees = self.last is not None and prediction == self.last
            self.count = np.where(agrees, self.count + 1, 1)
            self.last = prediction
        else:
            confident = confidence(logits) > self.thresholds[exit - 1]
            self.count = np.where(confident, self.count + 1, 0)
        return self.count >= self.patience

    def keep(self, rows: NDArray[np.intp]) -> None:
        if self.count is not None:
            self.count = self.count[rows]
        if self.last is not None:
            self.last = self.last[rows]


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{name} must be a whole number of at least 1, found {value!r}")


@dataclass(frozen=True)
class FixedExit(Policy):
    """Every image leaves at this exit; M + 1 is the final classifier."""

    exit: int = 1
    name = "fixed"

    def __post_init__(self) -> None:
        """Refuse counts below 1."""
        _check_count("exit", self.exit)

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


POLICIES: dict[str, type[Policy]] = {
    p.name: p for p in (Confidence, Entropy, Patience, PatientConfidence, FixedExit, Never)
}


def from_json(data: Any) -> Policy:
    """Build a policy from what ``Policy.to_json`` wrote.

    Raises:
        UsageError: unknown name, unknown or wrongly typed parameter.
    """
    name = data.get("name") if isinstance(data, dict) else None
    kind = POLICIES.get(name) if isinstance(name, str) else None
    if kind is None:
        raise UsageError(f"a policy's name must be one of {', '.join(POLICIES)}, found {name!r}")
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k != "name"}
    if extra := sorted(values.keys() - known):
        raise UsageError(f"policy {name} has no {', '.join(extra)}; it has {sorted(known)}")
    return kind(**values)


def parse(text: str) -> Policy:
    """A policy as typed: its name, then its parameters after colons.

    For instance ``confidence:0.8``, ``entropy:0.6,0.5``, ``patience:2``,
    ``patient_confidence:0.5:2``, ``fixed:3`` or ``never``.

    Raises:
        UsageError: not of this form.
    """
    name, *arguments = text.split(":")
    kind = POLICIES.get(name)
    parameters = fields(kind) if kind else ()  # type: ignore[arg-type]
    if kind is None or len(arguments) > len(parameters):
        raise UsageError(
            f"expected a policy such as confidence:0.8, entropy:0.6, patience:2, "
            f"patient_confidence:0.5:2, fixed:3 or never; found {text!r}"
        )
    try:
        values: dict[str, Any] = {}
        for field, argument in zip(parameters, arguments, strict=False):
            if field.name == "threshold":
                numbers = tuple(float(part) for part in argument.split(","))
                values[field.name] = numbers if len(numbers) > 1 else numbers[0]
            else:
                values[field.name] = int(argument)
    except ValueError:
        raise UsageError(f"{text!r}: {argument!r} is not a number") from None
    return kind(**values)
