"""``TargetRate``: a policy that keeps a frame rate by switching between operating points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge import policies
from lgvit_edge._support.numbers import real
from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.errors import UsageError
from lgvit_edge.policies import FixedExit, Never, Policy, Tracker
from lgvit_edge.runtime.result import Pace

_QUICK, _SLOW = 1 / 6, 1 / 64  # weights of a new frame: in the load, in how hard images are
_GAP = 0.15  # a slower point must leave this share of the budget unused
_PATIENCE = 10  # frames in a row before a slower point is tried
_LONGEST = 160  # frames; where attempts fail, that patience doubles up to this
_SOON = 60  # frames; a point given up again within these was tried too early


@dataclass(frozen=True)
class _Level:
    name: str
    policy: Policy
    exit_ms: NDArray[np.float64]  # from the input to each exit, as calibrated, ``[M + 1]``
    cost: float  # mean ms of the network per image
    accuracy: float  # minus the baseline's on the same images; for a single exit, only a rank


class TargetRate(Policy):
    """Keeps a frame rate: images leave earlier while the machine is busy, and later afterwards.

    The levels are the bundle's operating points, ordered by the accuracy they record against the
    baseline's on the same images, and as the last resort exit 1 for every image. Without operating
    points they are every exit for all images; a bundle records no accuracy of those, and a deeper
    exit is taken to be the more accurate. Of equally accurate levels the cheaper comes first, and
    a level that is dearer than a more accurate one is never chosen. A level's cost is computed, not
    tried: the shares of images per exit that ``tune`` measured, times the segments' times from
    warm-up, times how much slower they are now. When the cost passes the budget, the most accurate
    level that fits is chosen at once. A more accurate one follows when it has fitted with 15 % to
    spare for 10 frames; each time it has to be given up again soon, that patience doubles, up to
    160 frames, so that the level does not oscillate.

    One object serves one session at a time, until that gets another policy or is closed.
    ``Result.pace`` says what was chosen and why.
    """

    name = "target_rate"

    def __init__(
        self, fps: float, points: Sequence[str] | None = None, *, headroom: float = 0.1
    ) -> None:
        """Set the frame rate to keep.

        Args:
            fps: frames per second.
            points: names of the operating points to move along; None for all.
            headroom: share of the time between frames that is left to the application.

        Raises:
            UsageError: a number is out of range, or the points are no list.
        """
        if not 0 < real(fps) < 1e6:
            raise UsageError(f"fps must be a positive number, found {fps!r}")
        if not 0 <= real(headroom) < 1:
            raise UsageError(f"headroom must be in 0..1, found {headroom!r}")
        if points is not None and (isinstance(points, str) or not isinstance(points, Sequence)):
            raise UsageError(f"points must be a list of names, such as ['fast'], found {points!r}")
        self.fps, self.points = fps, None if points is None else tuple(points)
        self.budget_ms, self._headroom = 1e3 / fps * (1 - headroom), headroom
        self._levels: list[_Level] = []

    def again(self) -> TargetRate:
        """Return another of the same settings, for another session."""
        return TargetRate(self.fps, self.points, headroom=self._headroom)

    def policies(self, manifest: Manifest) -> list[Policy]:
        """Return the policies of the operating points, or of single exits where there are none.

        Raises:
            UsageError: there is no such point.
        """
        names = self._names(manifest)
        return [policies.from_json(manifest.points[n].policy) for n in names] or [FixedExit(1)]

    def _names(self, manifest: Manifest) -> list[str]:
        names = list(manifest.points if self.points is None else self.points)
        if unknown := [name for name in names if name not in list(manifest.points)]:
            listed = ", ".join(manifest.points) or "none; run: lgvit-edge tune"
            raise UsageError(f"no operating point {unknown[0]!r}; this bundle has {listed}")
        return names

    def attach(
        self, manifest: Manifest, exit_ms: NDArray[np.float64], saved_ms: NDArray[np.float64]
    ) -> None:
        """Order the levels for a session, which calls this when it starts to use the policy.

        ``exit_ms`` is the time from input to each exit with all heads, ``[M + 1]``, when it was
        warmed up; ``saved_ms`` what each segment takes less without its head, likewise.

        Raises:
            UsageError: the policy serves another session, or there is no such point.
        """
        if self._levels:
            raise UsageError(
                "this TargetRate serves another session; make one for each session, or give that "
                "one another policy first"
            )
        levels = []
        for name, policy in zip(self._names(manifest), self.policies(manifest), strict=False):
            point = manifest.points[name]
            read = (*policy.exits_read(len(exit_ms) - 1), True)
            own_ms = exit_ms - np.cumsum(np.where(read, 0.0, saved_ms))
            cost = float(np.dot(point.shares, own_ms))
            accuracy = point.accuracy - point.baseline_accuracy
            levels.append(_Level(name, policy, own_ms, cost, accuracy))
        # Differences of accuracies lie above -1, so a single exit comes after every point.
        depth = len(exit_ms)
        levels += [
            _Level(f"exit {e}", FixedExit(e), exit_ms, float(exit_ms[e - 1]), e - depth - 2.0)
            for e in range(1, 2 if levels else depth + 1)
        ]
        self._levels = sorted(levels, key=lambda level: (-level.accuracy, level.cost))
        self._level = 0
        self._load = self._hardness = 1.0
        self._prepare_ms = 0.0
        self._fits = self._since = 0
        self._patience, self._tried = _PATIENCE, False

    def detach(self) -> None:
        """Release the policy, so that another session may use it."""
        self._levels = []

    def start(self, exits: int) -> Tracker:
        """Start the current level's policy."""
        policy = self._levels[self._level].policy if self._levels else Never()
        return policy.start(exits)

    def exits_read(self, exits: int) -> tuple[bool, ...]:
        """See ``Policy.exits_read``: one point or another may read each exit."""
        return (True,) * exits

    def to_json(self) -> dict[str, Any]:
        """Return the settings for records; no bundle stores such a policy."""
        points = None if self.points is None else list(self.points)
        return {"name": self.name, "fps": self.fps, "budget_ms": self.budget_ms, "points": points}

    @property
    def pace(self) -> Pace:
        """The operating point for the next frame, and why."""
        level = self._levels[self._level]
        return Pace(
            point=level.name,
            level=self._level + 1,
            levels=len(self._levels),
            load=self._load,
            expected_ms=self._expected(self._level),
            budget_ms=self.budget_ms,
        )

    def observe(self, exits: Sequence[int], network_ms: float, prepare_ms: float) -> None:
        """Record how long frames took, and choose the next one's level.

        Args:
            exits: that the images took; more than one for a batch.
            network_ms: per image, in the chain.
            prepare_ms: per image, before it in the same thread.
        """
        by_exit = self._levels[self._level].exit_ms
        calibrated_ms = float(np.mean([by_exit[exit - 1] for exit in exits]))
        self._load += (network_ms / calibrated_ms - self._load) * _QUICK
        self._hardness += (calibrated_ms / self._levels[self._level].cost - self._hardness) * _SLOW
        self._prepare_ms += (prepare_ms - self._prepare_ms) * _QUICK
        self._since += 1
        if self._expected(self._level) > self.budget_ms:
            if self._tried and self._since <= _SOON:
                self._patience = min(_LONGEST, 2 * self._patience)
            self._move(self._best(self.budget_ms), tried=False)
            return
        if self._since > _SOON and self._tried:
            self._patience, self._tried = _PATIENCE, False
        better = self._best(self.budget_ms * (1 - _GAP))
        self._fits = self._fits + 1 if better < self._level else 0
        if self._fits >= self._patience:
            self._move(better, tried=True)

    def _expected(self, level: int) -> float:
        return self._prepare_ms + self._load * self._hardness * self._levels[level].cost

    def _best(self, budget: float) -> int:
        """Return the most accurate level within a budget, or the fastest."""
        fitting = (i for i in range(len(self._levels)) if self._expected(i) <= budget)
        costs = [level.cost for level in self._levels]
        return next(fitting, costs.index(min(costs)))

    def _move(self, level: int, *, tried: bool) -> None:
        if level != self._level:
            self._level, self._since, self._tried, self._fits = level, 0, tried, 0
