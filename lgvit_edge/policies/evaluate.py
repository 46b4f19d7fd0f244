"""Evaluates policies on labelled images, given the logits of all exits, without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.policies.base import POLICIES, Policy

Floats = NDArray[np.float64]
N = TypeVar("N", int, float)


@dataclass(frozen=True)
class Images:
    """Holds the logits of labelled images at all exits."""

    logits: NDArray[np.float32]  # ``[n, M + 1, C] float32``
    labels: NDArray[np.int64]  # ``[n]``, whole numbers

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def exits(self) -> int:
        """Number of exits before the final classifier, M."""
        return int(self.logits.shape[1]) - 1

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """Whether each exit is right, ``[n, M + 1]``."""
        return np.asarray(self.logits.argmax(axis=-1) == self.labels[:, None])

    @property
    def accuracies(self) -> list[float]:
        """Top-1 accuracy of every exit, 0..1, the final classifier last."""
        return [float(share) for share in self.right.mean(axis=0)]

    @property
    def baseline_right(self) -> NDArray[np.bool_]:
        """Whether the baseline is right, ``[n]``; it ends in the same classifier as the chain."""
        return self.right[:, -1]

    @property
    def baseline_accuracy(self) -> float:
        """Top-1 accuracy of the baseline, 0..1."""
        return float(self.baseline_right.mean())


@dataclass(frozen=True)
class ExitCosts:
    """Holds the costs of an image by the exit it takes, and through the baseline."""

    blocks: tuple[int, ...]  # number it goes through, of all passes, ``[M + 1]``
    baseline_blocks: int  # L of the model without exits
    macs: tuple[int, ...]  # multiply-accumulates, heads included, ``[M + 1]``
    baseline_macs: int  # of the model without exits
    ms: tuple[float, ...] = ()  # milliseconds, ``[M + 1]``; empty where nothing was timed
    baseline_ms: float = math.nan  # the same for the baseline; NaN where nothing was timed
    # What each exit's head takes of it where a session leaves heads out that nobody reads, ``[M]``;
    # empty where it runs all of them.
    head_macs: tuple[int, ...] = ()
    head_ms: tuple[float, ...] = ()  # likewise; empty where nothing was timed

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        ms: Sequence[float] = (),
        baseline_ms: float = math.nan,
        *,
        heads_apart: bool,
        head_ms: Sequence[float] = (),
    ) -> ExitCosts:
        """Returns a bundle's costs in blocks and MACs, with measured times.

        ``heads_apart`` is that of the session, ``head_ms`` what the function of this name returns.
        """
        heads = manifest.head_macs_apart if heads_apart else ()
        exits = range(1, len(manifest.segments) + 1)
        return cls(
            tuple(map(manifest.cumulative_blocks, exits)),
            manifest.passes[-1].num_blocks,
            tuple(map(manifest.cumulative_macs, exits)),
            manifest.baseline.macs,
            tuple(map(float, ms)),
            baseline_ms,
            heads,
            tuple(float(ms) if macs else 0.0 for ms, macs in zip(head_ms, heads, strict=False)),
        )

    def under(self, policy: Policy) -> ExitCosts:
        """Returns the costs under a policy, of what a session then runs.

        For a policy that never stops early that is the model without exits, for another the chain
        without the heads that it does not read, where the session can leave them out.
        """
        exits = len(self.macs) - 1
        if exits and not policy.stops_early(exits):
            return replace(
                self,
                blocks=(*self.blocks[:-1], self.baseline_blocks),
                macs=(*self.macs[:-1], self.baseline_macs),
                ms=(*self.ms[:-1], self.baseline_ms) if self.ms else (),
            )
        return self.without_heads(policy.exits_read(exits))

    def without_heads(self, read: Sequence[bool]) -> ExitCosts:
        """Returns the costs without the heads of exits that are not ``read``, ``[M]``.

        Where the session runs all heads, they stay as they are.
        """
        return replace(
            self,
            macs=_without(self.macs, self.head_macs, read),
            ms=_without(self.ms, self.head_ms, read),
        )

    def mean_macs(self, shares: ArrayLike) -> float:
        """Returns mean MACs per image, given the share of images at each exit, ``[M + 1]``."""
        return float(np.dot(shares, self.macs))

    def layers_speedup(self, shares: ArrayLike) -> float:
        """Returns the speed-up in blocks (Eq. 17): L over the mean number of blocks per image.

        It counts blocks of all passes alike, whatever they cost.
        """
        return float(self.baseline_blocks / np.dot(shares, self.blocks))

    def mean_ms(self, shares: ArrayLike) -> float:
        """Returns mean milliseconds per image, given the shares; NaN where nothing was timed."""
        return float(np.dot(shares, self.ms)) if self.ms else math.nan


def head_ms(whole: Sequence[Any] | Floats, blocks: Sequence[Any] | Floats) -> list[float]:
    """Returns what each exit's head takes, ``[M]`` in ms.

    That is the mean of its segment's times, ``[n, M + 1]``, less the mean without heads, likewise.
    """
    less = np.mean(whole, axis=0) - np.mean(blocks, axis=0)
    return np.maximum(less, 0.0)[:-1].tolist()  # type: ignore[no-any-return]


def _without(costs: tuple[N, ...], heads: tuple[N, ...], read: Sequence[bool]) -> tuple[N, ...]:
    """Returns costs by exit, without those of the heads on the way that are not read."""
    if not costs or not heads:
        return costs
    unread = (0 if kept else head for head, kept in zip(heads, read, strict=True))
    saved: list[Any] = list(accumulate(unread))
    return tuple(cost - less for cost, less in zip(costs, (*saved, saved[-1]), strict=True))


@dataclass(frozen=True)
class Outcome:
    """Holds what a policy gives on a set of images."""

    policy: Policy
    accuracy: float  # top-1 of the answers given, 0..1
    errors: int  # images that the chain gets wrong and the baseline right
    drop_error: float  # standard error of the accuracy lost, from the images that differ
    shares: tuple[float, ...]  # share of the images at each exit, the final classifier last
    right_shares: tuple[float, ...]  # share of images answered rightly at each exit
    layers_speedup: float  # in blocks, Eq. 17 of the paper
    macs: float  # mean, heads included
    macs_speedup: float  # against the baseline
    latency_ms: float  # mean; NaN where nothing was timed
    wall_clock_speedup: float  # against the baseline's mean; NaN where nothing was timed

    def to_json(self) -> dict[str, Any]:
        """Returns the outcome as JSON; without times where nothing was timed."""
        row = {f.name: getattr(self, f.name) for f in fields(self)}
        finite = {k: v for k, v in row.items() if not (isinstance(v, float) and math.isnan(v))}
        return finite | {
            "policy": self.policy.to_json(),
            "shares": list(self.shares),
            "right_shares": list(self.right_shares),
        }


def evaluate(policy: Policy, images: Images, costs: ExitCosts) -> Outcome:
    """Replays a policy on the images as a session would, and returns what it gives.

    Raises:
        UsageError: the policy does not fit the number of exits.
    """
    exits, classes = policy.replay(images.logits)
    costs = costs.under(policy)
    right = classes == images.labels
    change = images.baseline_right.astype(np.float64) - right
    count, places = len(images), images.exits + 1
    shares = np.bincount(exits - 1, minlength=places) / count
    macs, ms = costs.mean_macs(shares), costs.mean_ms(shares)
    return Outcome(
        policy,
        accuracy=float(right.mean()),
        errors=int((change > 0).sum()),
        drop_error=float(change.std() / count**0.5),
        shares=tuple(shares.tolist()),
        right_shares=tuple((np.bincount(exits - 1, right, places) / count).tolist()),
        layers_speedup=costs.layers_speedup(shares),
        macs=macs,
        macs_speedup=costs.baseline_macs / macs,
        latency_ms=ms,
        wall_clock_speedup=costs.baseline_ms / ms,
    )


def sweep(images: Images, costs: ExitCosts) -> dict[str, list[Outcome]]:
    """Evaluates every policy at its settings, careless to careful; returns outcomes by name."""
    settings = {name: kind.settings(images.exits) for name, kind in POLICIES.items()}
    return {
        name: [evaluate(policy, images, costs) for policy in policies]
        for name, policies in settings.items()
        if policies
    }


def summary(images: Images, costs: ExitCosts) -> dict[str, Any]:
    """Returns, as JSON, the accuracy of every exit, an oracle's, and the sweeps of all policies.

    The oracle leaves at the first exit that is right, or at the last if none is: no policy is
    better.
    """
    right = images.right
    first = np.where(right.any(axis=1), right.argmax(axis=1), images.exits)
    shares = np.bincount(first, minlength=images.exits + 1) / len(images)
    return {
        "images": len(images),
        "accuracy": images.accuracies,
        "oracle": {
            "accuracy": float(right.any(axis=1).mean()),
            "layers_speedup": costs.layers_speedup(shares),
        },
        "policies": {
            name: [outcome.to_json() for outcome in outcomes]
            for name, outcomes in sweep(images, costs).items()
        },
    }
