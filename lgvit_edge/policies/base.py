"""Base classes of exit policies: immutable rules, and their state while a batch is in the chain.

A policy describes itself on its class and calls ``register_policy``; ``POLICIES`` lists them all.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.numbers import whole
from lgvit_edge.errors import UsageError
from lgvit_edge.policies.memory import Averages
from lgvit_edge.policies.scores import PROBABILITY, Floats, Measure

Mask = NDArray[np.bool_]
PerExit = float | tuple[float, ...]
_CHUNK = 512  # images replayed together, because logits of many classes take much memory


@dataclass(frozen=True)
class Rule:
    """Says when to stop where one exit's logits decide: for who decides outside of a ``Tracker``.

    An image stops at an exit whose logits, times ``scales``, measure surer than ``thresholds``.
    Both have one number for each exit before the final one.
    """

    measure: Measure
    thresholds: tuple[float, ...]
    scales: tuple[float, ...]


class Tracker(ABC):
    """Holds a policy's state for the images still in the chain.

    At every exit that it ``reads``, ``combine`` is called, then ``step`` (not at the final exit),
    then ``score`` for rows that stop, then ``keep`` for the rows that go on.
    """

    measure: Measure = PROBABILITY  # the kind of number that ``score`` returns

    def combine(self, logits: Floats) -> Floats:
        """Returns the logits that decide and answer, ``[B, C] float32``, given this exit's."""
        return logits

    @abstractmethod
    def step(self, exit: int, logits: Floats) -> Mask:
        """Returns which rows stop at ``exit`` (1-based), given the logits ``combine`` returned."""

    def score(self, exit: int, logits: Floats) -> Floats:
        """Returns how sure the exit is of each row, ``[B]``: what ``step`` compares, if any."""
        return self.measure.of(logits)

    def reads(self, exit: int) -> bool:
        """Returns whether the logits of ``exit`` (1-based) matter; if not, its head need not run.

        They do not where no image can stop at the exit and no later decision depends on them. The
        exit is then left out: none of the calls above is made, unless a deadline stops an image
        there, which ``combine`` and ``score`` then answer.
        """
        return True

    def rule(self) -> Rule | None:
        """Returns what ``step`` does as a rule; None where it depends on more than one exit."""
        return None

    def scale(self, exit: int) -> float:
        """Returns what brings an exit's logits to the scale of the final classifier's.

        It is 1 unless exits have temperatures of their own.
        """
        return 1.0

    def keep(self, rows: NDArray[np.intp]) -> None:  # noqa: B027 - most policies have no state
        """Drops the state of all rows but these."""


class Policy(ABC):
    """Decides when an image stops.

    Subclasses are frozen dataclasses; their parameters are fields.

    Attributes:
        name: used in JSON and on the command line.
        label: used in pictures.
        help: when an image stops, in a few words.
        example: the policy as typed, with sensible parameters.
        averages: whether it may decide from logits averaged with those of frames before
            (``Memory``); not where it counts exits that agree, as the memory makes them agree.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    help: ClassVar[str]
    example: ClassVar[str]
    averages: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Convert the parameters to their types, and refuse values out of range.

        Raises:
            UsageError: names the parameter.
        """
        for parameter in fields(self):  # type: ignore[arg-type]
            if read := parameter.metadata.get("read"):
                value = read(parameter.name, getattr(self, parameter.name))
                object.__setattr__(self, parameter.name, value)

    @abstractmethod
    def start(self, exits: int) -> Tracker:
        """Returns a tracker for a new batch in a chain with ``exits`` exits before the final one.

        Raises:
            UsageError: the parameters are for another number of exits, or name an exit beyond them.
        """

    @classmethod
    def settings(cls, exits: int, steps: int = 22) -> Sequence[Policy]:
        """Returns settings from careless to careful, to draw and tune; none if nothing varies.

        There are ``steps`` of them where the policy has a free choice.
        """
        return ()

    def replay(self, logits: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Returns where a session would stop each image, and its answer, given all exits' logits.

        Takes ``[B, M + 1, C] float32``. Returns the exit each image takes, ``[B]``, in 1..M + 1,
        and the class it is given, ``[B]``.
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

    def stops_early(self, exits: int) -> bool:
        """Returns whether an image may stop before the final classifier, given ``exits`` before it.

        Where none may, and the final logits alone decide the answer, a session runs the model
        without exits.
        """
        return any(self.exits_read(exits))

    def exits_read(self, exits: int) -> tuple[bool, ...]:
        """Returns, for each exit, whether its head is run; see ``Tracker.reads``."""
        tracker = self.start(exits)
        return tuple(tracker.reads(exit) for exit in range(1, exits + 1))

    def among(self, exits: Sequence[int]) -> Policy:
        """Returns the same policy for a chain with only these exits, 1-based."""
        chosen = {
            f.name: tuple(value[exit - 1] for exit in exits)
            for f in fields(self)  # type: ignore[arg-type]
            if isinstance(value := getattr(self, f.name), tuple)
        }
        return replace(self, **chosen)  # type: ignore[type-var]

    def to_json(self) -> dict[str, Any]:
        """Returns the policy as JSON, which ``policies.from_json`` reads back."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        listed = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        return {"name": self.name, **listed}


@dataclass(frozen=True)
class Left:
    """Holds the images that leave at one exit."""

    exit: int  # 1..M + 1
    rows: NDArray[np.intp]  # their places in the whole batch, ``[k]``
    classes: NDArray[np.intp]  # the answers, ``[k]``
    scores: Floats  # how sure each answer is, by ``Tracker.measure``, ``[k]``
    going: NDArray[np.intp]  # places of the rows that go on, among the rows that reached this exit


class Departures:
    """Decides, given a batch's logits exit by exit, which rows leave at which exit.

    With ``averages`` it decides from logits averaged with those of frames before.
    """

    def __init__(
        self, policy: Policy, exits: int, count: int, averages: Averages | None = None
    ) -> None:
        self.exit, self._final = 0, exits + 1  # the last exit seen, 0 at the start; the last of all
        self.rows = np.arange(count)  # those still in the chain, ascending
        self.tracker, self._averages = policy.start(exits), averages

    def skips_next(self) -> bool:
        """Returns whether nobody leaves at the next exit, whatever its logits are."""
        return self.exit + 1 < self._final and not self.tracker.reads(self.exit + 1)

    def skip(self) -> None:
        """Goes on to the next exit without its logits, as where it ``skips_next``."""
        self.exit += 1

    def see(self, logits: Floats) -> Left:
        """Takes the next exit's logits of ``rows``, ``[len(rows), C]``; returns who leaves."""
        if self.skips_next():
            self.skip()
            nobody = np.empty(0, np.intp)
            going = np.arange(len(self.rows))
            return Left(self.exit, nobody, nobody, np.empty(0, np.float32), going)
        self.exit += 1
        combined = self.tracker.combine(logits)
        averages, scale = self._averages, 1.0
        if averages is not None:
            scale = self.tracker.scale(self.exit)
            combined = averages.mix(self.rows, combined, scale)
        final = self.exit == self._final
        stop = np.ones(len(combined), np.bool_) if final else self.tracker.step(self.exit, combined)
        leaving, going = np.flatnonzero(stop), np.flatnonzero(~stop)
        left = Left(
            self.exit,
            self.rows[leaving],
            combined[leaving].argmax(axis=-1),
            self.tracker.score(self.exit, combined)[leaving] if len(leaving) else np.empty(0, "f4"),
            going,
        )
        if averages is not None:
            averages.take(left.rows, combined[leaving], scale)
        self.rows = self.rows[going]
        self.tracker.keep(going)
        return left


class ThresholdPolicy(Policy):
    """Compares one number per image with a threshold at every exit.

    A subclass has a field ``threshold``, and ``temperature`` where logits are divided by one first.

    Attributes:
        measure: the kind of number; an image may stop where it is surer than the threshold.
        searched: the values tuning tries for each field, besides the thresholds.
        calibrated: whether tuning may also give each exit a temperature of its own.
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
        """Returns the same policy with another threshold, or one per exit."""
        return replace(self, threshold=threshold)  # type: ignore[type-var]

    def held(self, surer: Mask) -> Mask:
        """Returns where images may stop, ``[n, M]``, given where they beat the threshold."""
        return surer

    @classmethod
    def limits(cls) -> tuple[float, float]:
        """Returns the least and the greatest threshold."""
        (parameter,) = (f for f in fields(cls) if f.name == "threshold")  # type: ignore[arg-type]
        return parameter.metadata.get("limits", (-math.inf, math.inf))  # type: ignore[no-any-return]


class ThresholdTracker(Tracker):
    """Compares each exit's score with that exit's threshold."""

    def __init__(self, policy: ThresholdPolicy, exits: int) -> None:
        self.measure = policy.measure
        self._of, self._below = policy.measure.of, policy.measure.low_is_sure  # the hot path
        self.thresholds = per_exit(policy.threshold, exits)
        self._scales: tuple[float, ...] | None = None
        if policy.temperature != 1.0:  # skipped at 1.0, to save time between segments
            by_exit = per_exit(policy.temperature, exits, "temperature")
            # The final classifier has a temperature only where all exits share one.
            last = 1.0 if isinstance(policy.temperature, tuple) else policy.temperature
            self._scales = tuple(1 / t for t in (*by_exit, last))
        self._scored, self._scores = 0, np.empty(0, np.float32)

    def step(self, exit: int, logits: Floats) -> Mask:
        """See ``Tracker.step``."""
        scores, threshold = self.score(exit, logits), self.thresholds[exit - 1]
        return scores < threshold if self._below else scores > threshold

    def reads(self, exit: int) -> bool:
        """See ``Tracker.reads``; a subclass that decides otherwise reads all, unless it says so."""
        return type(self) is not ThresholdTracker or self.may_stop(exit)

    def may_stop(self, exit: int) -> bool:
        """Returns whether a score can beat the threshold of ``exit``."""
        surest, threshold = self.measure.surest, self.thresholds[exit - 1]
        return surest < threshold if self._below else surest > threshold

    def rule(self) -> Rule | None:
        """See ``Tracker.rule``; a subclass that decides otherwise has none, unless it says so."""
        if type(self) is not ThresholdTracker:
            return None
        exits = len(self.thresholds)
        scales = self._scales[:exits] if self._scales is not None else (1.0,) * exits
        return Rule(self.measure, self.thresholds, scales)

    def scale(self, exit: int) -> float:
        """See ``Tracker.scale``; one temperature for all exits leaves them as they are."""
        return 1.0 if self._scales is None else self._scales[exit - 1] / self._scales[-1]

    def score(self, exit: int, logits: Floats) -> Floats:
        """See ``Tracker.score``; computed once per exit."""
        if exit != self._scored:
            if self._scales is not None:
                logits = logits * np.float32(self._scales[exit - 1])
            self._scored, self._scores = exit, self._of(logits)
        return self._scores


POLICIES: dict[str, type[Policy]] = {}
P = TypeVar("P", bound=type[Policy])


def register_policy(kind: P) -> P:
    """Adds a policy to the registry, for JSON, commands, tuning and reports.

    Raises:
        ValueError: a description is missing, or the name is in use.
    """
    described = ("name", "label", "help", "example")
    missing = [name for name in described if not getattr(kind, name, None)]
    if "__dataclass_fields__" not in vars(kind):  # a base's fields would lack this class's own
        missing.append("@dataclass(frozen=True)")
    elif issubclass(kind, ThresholdPolicy):
        required = {"threshold", *kind.searched, *(["temperature"] if kind.calibrated else [])}
        parameters = {f.name for f in fields(kind)}  # type: ignore[arg-type]
        missing += [f"a field {name}" for name in sorted(required - parameters)]
    if missing:
        raise ValueError(f"the policy {kind.__name__} lacks {', '.join(missing)}")
    if kind.name in POLICIES:
        raise ValueError(f"there is a policy {kind.name!r} already")
    if kind.example.split(":")[0] != kind.name:
        raise ValueError(f"the example of {kind.name!r} must begin with it, found {kind.example!r}")
    POLICIES[kind.name] = kind
    return kind


# Fields for parameters of policies, with a default and a valid range.


def numbers(default: float, low: float, high: float) -> Any:
    """Returns a field with one number in ``low..high``, or one per exit."""

    def read(name: str, value: Any) -> PerExit:
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if isinstance(value, (list, tuple)):
            if not value:
                raise UsageError(f"expected one {name} or one per exit, found none")
            return tuple(_number(name, item, low, high) for item in value)
        return _number(name, value, low, high)

    return _parameter(default, read, limits=(low, high))


def number(default: float, low: float, high: float) -> Any:
    """Returns a field with one number in ``low..high``, the same for all exits."""
    return _parameter(default, lambda name, value: _number(name, value, low, high))


def count(default: int) -> Any:
    """Returns a field with a whole number of at least 1."""
    return _parameter(default, whole)


def _parameter(default: Any, read: Callable[[str, Any], Any], **about: Any) -> Any:
    return field(default=default, metadata={"read": read, **about})


def _number(name: str, value: Any, low: float, high: float) -> float:
    plain = value.item() if isinstance(value, np.generic) else value
    is_number = isinstance(plain, (int, float)) and not isinstance(plain, bool)
    # NaN is in no range; the largest float also bounds ranges without an end.
    if not is_number or not (low <= plain <= high and abs(plain) <= sys.float_info.max):
        raise UsageError(f"a {name} must be in {low:g}..{high:g}, found {plain!r}")
    return float(plain)


def per_exit(value: PerExit, exits: int, what: str = "threshold") -> tuple[float, ...]:
    """Returns one number for each exit.

    Raises:
        UsageError: the numbers are for another number of exits.
    """
    if not isinstance(value, tuple):
        return (float(value),) * exits
    if len(value) != exits:
        expected = f"expected one {what} or {exits}, one per exit before the final classifier"
        raise UsageError(f"{expected}; found {len(value)}")
    return value
