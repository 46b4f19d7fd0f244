"""What every exit policy is: an immutable rule, and its state while a batch goes through the exits.

The rules themselves are in ``rules``. The registry ``POLICIES`` is the only list of them; whoever
adds a policy describes it on its class and calls ``register_policy``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.errors import UsageError
from lgvit_edge.policies.scores import PROBABILITY, Floats, Measure

Mask = NDArray[np.bool_]
PerExit = float | tuple[float, ...]
_CHUNK = 512  # images replayed together: logits of thousands of classes fill the memory


class Tracker(ABC):
    """A policy's state for the images still in the chain.

    At every exit ``combine`` is called, the final one included, then, but for the final one,
    ``step``, then ``score`` for rows that stop, then ``keep`` where others go on.

    Attributes:
        measure: what ``score`` is.
    """

    measure: Measure = PROBABILITY

    def combine(self, logits: Floats) -> Floats:
        """What is decided on and answered, ``[B, C] float32``, from this exit's logits."""
        return logits

    @abstractmethod
    def step(self, exit: int, logits: Floats) -> Mask:
        """Which rows stop at ``exit`` (1-based), given what ``combine`` made of its logits."""

    def score(self, exit: int, logits: Floats) -> Floats:
        """How sure, ``[B]``: the number that ``step`` compared where it compared one."""
        return self.measure.of(logits)

    def keep(self, rows: NDArray[np.intp]) -> None:  # noqa: B027 - most policies remember nothing
        """Forget all rows but these."""


class Policy(ABC):
    """When to stop. Subclasses are frozen dataclasses, their parameters fields of it.

    Attributes:
        name: in JSON and on the command line.
        label: in pictures.
        help: when an image stops, in a few words.
        example: as typed, with parameters that make sense.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    help: ClassVar[str]
    example: ClassVar[str]

    def __post_init__(self) -> None:
        """Bring the parameters into their form, and refuse what they cannot be.

        Raises:
            UsageError: naming the parameter.
        """
        for parameter in fields(self):  # type: ignore[arg-type]
            if read := parameter.metadata.get("read"):
                value = read(parameter.name, getattr(self, parameter.name))
                object.__setattr__(self, parameter.name, value)

    @abstractmethod
    def start(self, exits: int) -> Tracker:
        """A tracker for a new batch in a chain with ``exits`` exits before the final one.

        Raises:
            UsageError: numbers per exit do not match ``exits``, or there is no such exit.
        """

    @classmethod
    def settings(cls, exits: int, steps: int = 22) -> Sequence[Policy]:
        """Settings from careless to careful, to draw and to tune; none where there is no choice.

        Args:
            exits: M.
            steps: how many, where that is free.
        """
        return ()

    def replay(self, logits: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """What a session would do, given all exits' logits.

        Args:
            logits: ``[B, M + 1, C] float32``.

        Returns:
            The exit each image takes, ``[B]``, in 1..M + 1, and the class it is given, ``[B]``.
        """
        count, total = logits.shape[:2]
        exits, classes = np.empty(count, np.intp), np.empty(count, np.intp)
        for first in range(0, count, _CHUNK):
            chunk = logits[first : first + _CHUNK]
            batch = Departures(self, total - 1, len(chunk))
            while len(batch.rows):
                left = batch.see(chunk[batch.rows, batch.exit])
                exits[first + left.rows], classes[first + left.rows] = left.exit, left.classes
        return exits, classes

    def among(self, exits: Sequence[int]) -> Policy:
        """The same policy in a chain that has only these of its exits, 1-based."""
        by_exit = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        chosen = {
            name: tuple(value[exit - 1] for exit in exits)
            for name, value in by_exit.items()
            if isinstance(value, tuple)
        }
        return replace(self, **chosen)  # type: ignore[type-var]

    def to_json(self) -> dict[str, Any]:
        """``policies.from_json`` reads it back."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {
            "name": self.name,
            **{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()},
        }


@dataclass(frozen=True)
class Left:
    """Images that leave at one exit.

    Attributes:
        exit: 1..M + 1.
        rows: of the batch as it began, ``[k]``.
        classes: answered, ``[k]``.
        scores: how sure, by ``Tracker.measure``, ``[k]``.
        going: places, among the rows that were still in, of those that go on.
    """

    exit: int
    rows: NDArray[np.intp]
    classes: NDArray[np.intp]
    scores: Floats
    going: NDArray[np.intp]


class Departures:
    """The exit loop's rule, for a batch: given logits exit by exit, which rows leave where.

    Attributes:
        exit: the last one seen, from 0.
        rows: still in the chain, ascending.
        tracker: of the policy.
    """

    def __init__(self, policy: Policy, exits: int, count: int) -> None:
        """Begin.

        Args:
            policy: what stops images.
            exits: M.
            count: of images.
        """
        self.exit, self._final = 0, exits + 1
        self.rows = np.arange(count)
        self.tracker = policy.start(exits)

    def see(self, logits: Floats) -> Left:
        """The next exit's logits of ``rows``, ``[len(rows), C]``; at the final one all leave."""
        self.exit += 1
        seen = self.tracker.combine(logits)
        final = self.exit == self._final
        stop = np.ones(len(seen), np.bool_) if final else self.tracker.step(self.exit, seen)
        leaving, going = np.flatnonzero(stop), np.flatnonzero(~stop)
        left = Left(
            self.exit,
            self.rows[leaving],
            seen[leaving].argmax(axis=-1),
            self.tracker.score(self.exit, seen)[leaving] if len(leaving) else np.empty(0, "f4"),
            going,
        )
        self.rows = self.rows[going]
        self.tracker.keep(going)
        return left


class ThresholdPolicy(Policy):
    """A policy that compares one number an image with a threshold at every exit.

    A subclass has a field ``threshold``, and ``temperature`` where logits are divided by one first.

    Attributes:
        measure: the number; an image may stop where it is surer than the threshold.
        searched: what tuning chooses between, by field; the thresholds it searches anyway.
        calibrated: whether tuning may also divide each exit's logits by that exit's own
            temperature.
    """

    measure: ClassVar[Measure] = PROBABILITY
    searched: ClassVar[dict[str, Sequence[Any]]] = {}
    calibrated: ClassVar[bool] = False
    threshold: PerExit
    temperature: PerExit = 1.0

    def start(self, exits: int) -> Tracker:
        """See ``Policy.start``."""
        return ThresholdTracker(self, exits)

    def at(self, threshold: PerExit) -> ThresholdPolicy:
        """The same policy with another threshold, or others."""
        return replace(self, threshold=threshold)  # type: ignore[type-var]

    def held(self, surer: Mask) -> Mask:
        """Where an image may stop, ``[n, M]``, given where it is surer than the threshold."""
        return surer

    @classmethod
    def limits(cls) -> tuple[float, float]:
        """The least and the greatest threshold."""
        (parameter,) = (f for f in fields(cls) if f.name == "threshold")  # type: ignore[arg-type]
        return parameter.metadata.get("limits", (-math.inf, math.inf))  # type: ignore[no-any-return]


class ThresholdTracker(Tracker):
    """Compares each exit's score with its threshold."""

    def __init__(self, policy: ThresholdPolicy, exits: int) -> None:
        """Raise UsageError where numbers per exit do not match ``exits``."""
        self.measure = policy.measure
        self._of, self._below = policy.measure.of, policy.measure.low_is_sure  # the hot path
        self.thresholds = per_exit(policy.threshold, exits)
        self._scales: tuple[float, ...] | None = None
        if policy.temperature != 1.0:  # the usual case costs nothing between two segments
            by_exit = per_exit(policy.temperature, exits, "temperature")
            # The final classifier has a temperature where all have the same.
            last = 1.0 if isinstance(policy.temperature, tuple) else policy.temperature
            self._scales = tuple(1 / t for t in (*by_exit, last))
        self._scored, self._scores = 0, np.empty(0, np.float32)

    def step(self, exit: int, logits: Floats) -> Mask:
        """See ``Tracker.step``."""
        scores, threshold = self.score(exit, logits), self.thresholds[exit - 1]
        return scores < threshold if self._below else scores > threshold

    def score(self, exit: int, logits: Floats) -> Floats:
        """See ``Tracker.score``; computed once an exit."""
        if exit != self._scored:
            if self._scales is not None:
                logits = logits * np.float32(self._scales[exit - 1])
            self._scored, self._scores = exit, self._of(logits)
        return self._scores


POLICIES: dict[str, type[Policy]] = {}
P = TypeVar("P", bound=type[Policy])


def register_policy(kind: P) -> P:
    """Make a policy known by its name, everywhere: JSON, commands, tuning, reports.

    Raises:
        ValueError: it lacks what describes it, or the name is taken.
    """
    described = ("name", "label", "help", "example")
    missing = [name for name in described if not getattr(kind, name, None)]
    if "__dataclass_fields__" not in vars(kind):  # a base's would lack what this class adds
        missing.append("@dataclass(frozen=True)")
    elif issubclass(kind, ThresholdPolicy):
        wanted = {"threshold", *kind.searched, *(["temperature"] if kind.calibrated else [])}
        parameters = {f.name for f in fields(kind)}  # type: ignore[arg-type]
        missing += [f"a field {name}" for name in sorted(wanted - parameters)]
    if missing:
        raise ValueError(f"the policy {kind.__name__} lacks {', '.join(missing)}")
    if kind.name in POLICIES:
        raise ValueError(f"there is a policy {kind.name!r} already")
    if kind.example.split(":")[0] != kind.name:
        raise ValueError(f"the example of {kind.name!r} must begin with it, found {kind.example!r}")
    POLICIES[kind.name] = kind
    return kind


# Parameters of policies: what they are by default, and what they may be.


def numbers(default: float, low: float, high: float) -> Any:
    """A field with one number in ``low..high``, or one per exit."""

    def read(name: str, value: Any) -> PerExit:
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if isinstance(value, (list, tuple)):
            if not value:
                raise UsageError(f"expected one {name} or one per exit, found none")
            return tuple(_number(name, each, low, high) for each in value)
        return _number(name, value, low, high)

    return _parameter(default, read, limits=(low, high))


def number(default: float, low: float, high: float) -> Any:
    """A field with one number in ``low..high``, the same for all exits."""
    return _parameter(default, lambda name, value: _number(name, value, low, high))


def count(default: int) -> Any:
    """A field with a whole number of at least 1."""

    def read(name: str, value: Any) -> int:
        plain = value.item() if isinstance(value, np.generic) else value
        if not isinstance(plain, int) or isinstance(plain, bool) or plain < 1:
            raise UsageError(f"{name} must be a whole number of at least 1, found {value!r}")
        return plain

    return _parameter(default, read)


def _parameter(default: Any, read: Callable[[str, Any], Any], **about: Any) -> Any:
    return field(default=default, metadata={"read": read, **about})


def _number(name: str, value: Any, low: float, high: float) -> float:
    plain = value.item() if isinstance(value, np.generic) else value
    is_number = isinstance(plain, (int, float)) and not isinstance(plain, bool)
    if not is_number or not low <= plain <= high:  # NaN is in no range
        raise UsageError(f"a {name} must be in {low:g}..{high:g}, found {plain!r}")
    return float(plain)


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
