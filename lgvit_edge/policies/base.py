"""What every exit policy is: a rule, and its state while a batch goes through the exits.

The rules themselves are in ``policy``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.errors import UsageError
from lgvit_edge.policies.scores import Floats

Mask = NDArray[np.bool_]
PerExit = float | tuple[float, ...]


class Tracker(ABC):
    """A policy's state for the images still in the chain.

    At every exit ``combine`` is called, the final one included, then, but for the final one,
    ``step``, then ``keep`` where rows stop and others go on.
    """

    def combine(self, logits: Floats) -> Floats:
        """What is decided on and answered, ``[B, C] float32``, from this exit's logits."""
        return logits

    @abstractmethod
    def step(self, exit: int, logits: Floats) -> Mask:
        """Which rows stop at ``exit`` (1-based), given what ``combine`` made of its logits."""

    def keep(self, rows: NDArray[np.intp]) -> None:  # noqa: B027 - most policies remember nothing
        """Forget all rows but these."""


class Policy(ABC):
    """When to stop. Subclasses are frozen dataclasses."""

    name: str

    @abstractmethod
    def start(self, exits: int) -> Tracker:
        """A tracker for a new batch in a chain with ``exits`` exits before the final one.

        Raises:
            UsageError: numbers per exit do not match ``exits``, or there is no such exit.
        """

    def replay(self, logits: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """What a session would do, given all exits' logits.

        Args:
            logits: ``[B, M + 1, C] float32``.

        Returns:
            The exit each image takes, ``[B]``, in 1..M + 1, and the class it is given, ``[B]``.
        """
        count, total = logits.shape[:2]
        tracker = self.start(total - 1)
        exits, classes = np.full(count, total, np.intp), np.empty(count, np.intp)
        rows = np.arange(count)
        for exit in range(1, total + 1):
            seen = tracker.combine(logits[rows, exit - 1])
            classes[rows] = seen.argmax(axis=-1)  # until a later exit says otherwise
            if exit == total:
                break
            stop = tracker.step(exit, seen)
            exits[rows[stop]] = exit
            going = np.flatnonzero(~stop)
            rows = rows[going]
            tracker.keep(going)
        return exits, classes

    def to_json(self) -> dict[str, Any]:
        """``policy.from_json`` reads it back."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {
            "name": self.name,
            **{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()},
        }


def per_exit(value: PerExit, exits: int, what: str = "threshold") -> tuple[float, ...]:
    """One number for each exit.

    Raises:
        UsageError: there are as many as for another chain.
    """
    if not isinstance(value, tuple):
        return (float(value),) * exits
    if len(value) != exits:
        raise UsageError(
            f"expected one {what} or {exits}, one per exit before the final classifier; "
            f"found {len(value)}"
        )
    return value


def check_range(value: PerExit, low: float, high: float, what: str = "threshold") -> None:
    """Refuse numbers outside ``low..high``, and what is no number.

    Raises:
        UsageError: naming it.
    """
    for number in value if isinstance(value, tuple) else (value,):
        is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
        if not is_number or not low <= number <= high:
            raise UsageError(f"a {what} must be in {low:g}..{high:g}, found {number!r}")


def check_count(name: str, value: int) -> None:
    """Refuse what is no whole number of at least 1.

    Raises:
        UsageError: naming it.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{name} must be a whole number of at least 1, found {value!r}")
