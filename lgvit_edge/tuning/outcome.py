"""What a policy gives on images whose logits are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.policies import Policy
from lgvit_edge.tuning.costs import Costs

T = TypeVar("T")
_CHUNK = 512  # images replayed together: logits of thousands of classes fill the memory


@dataclass(frozen=True)
class Images:
    """Labelled images, each through all exits.

    Attributes:
        logits: ``[n, M + 1, C] float32``.
        labels: ``[n]``.
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def exits(self) -> int:
        """M."""
        return int(self.logits.shape[1]) - 1

    @property
    def baseline_right(self) -> NDArray[np.bool_]:
        """Where the baseline, which ends in the same classifier as the chain, is right, ``[n]``."""
        return np.asarray(self.logits[:, -1].argmax(axis=-1) == self.labels)

    @property
    def baseline_accuracy(self) -> float:
        """Top-1 of the baseline, 0..1."""
        return float(self.baseline_right.mean())


@dataclass(frozen=True)
class Outcome:
    """What a policy gives.

    Attributes:
        policy: itself.
        accuracy: top-1, 0..1.
        errors: images that the chain gets wrong and the baseline right.
        drop_error: standard error of the accuracy given up, from the images that differ.
        latency_ms: mean.
        macs: mean.
        shares: of the images per exit, the final classifier last.
    """

    policy: Policy
    accuracy: float
    errors: int
    drop_error: float
    latency_ms: float
    macs: float
    shares: tuple[float, ...]


def replay(policy: Policy, images: Images) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """``Policy.replay`` for any number of images."""
    parts = [
        policy.replay(images.logits[first : first + _CHUNK])
        for first in range(0, len(images), _CHUNK)
    ]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def outcome(policy: Policy, images: Images, costs: Costs) -> Outcome:
    """Replay a policy, as a session would act."""
    exits, classes = replay(policy, images)
    right = classes == images.labels
    change = images.baseline_right.astype(np.float64) - right
    shares = np.bincount(exits - 1, minlength=images.exits + 1) / len(images)
    return Outcome(
        policy,
        float(right.mean()),
        int((change > 0).sum()),
        float(change.std() / len(images) ** 0.5),
        float(shares @ costs.ms),
        float(shares @ costs.macs),
        tuple(float(share) for share in shares),
    )


def front(
    items: Sequence[T],
    cost: Callable[[T], float],
    worth: Callable[[T], float],
    gap: float = 0.0,
) -> list[T]:
    """The items that none is both cheaper and worth more than, cheapest first.

    Args:
        items: to choose from.
        cost: less is better.
        worth: more is better.
        gap: least relative difference in cost between two that are kept.
    """
    rising: list[T] = []
    for item in sorted(items, key=lambda i: (cost(i), -worth(i))):
        if not rising or worth(item) > worth(rising[-1]):
            rising.append(item)
    kept: list[T] = []
    for place, item in enumerate(rising, 1):
        if place == len(rising) or not kept or cost(item) >= cost(kept[-1]) * (1 + gap):
            kept.append(item)
    return kept


@dataclass(frozen=True)
class Line:
    """Accuracy over mean latency, on the lines between points of a front.

    Attributes:
        ms: ``[k]``, rising.
        accuracy: ``[k]``; where points were chosen on other images it need not rise.
    """

    ms: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @classmethod
    def through(cls, points: Sequence[Outcome]) -> Line:
        """The line through what policies give."""
        ordered = sorted(points, key=lambda point: point.latency_ms)
        return cls(
            np.array([p.latency_ms for p in ordered]), np.array([p.accuracy for p in ordered])
        )

    def accuracy_at(self, ms: NDArray[np.float64]) -> NDArray[np.float64]:
        """Accuracy at given mean latencies."""
        return np.asarray(np.interp(ms, self.ms, self.accuracy), np.float64)

    def ms_at(self, accuracy: float) -> float | None:
        """The least mean latency with this accuracy; None where it is out of reach."""
        reached = np.flatnonzero(self.accuracy >= accuracy)
        if not len(reached):
            return None
        i = int(reached[0])
        if i == 0:
            return float(self.ms[0])
        (low, high), ends = self.accuracy[i - 1 : i + 1], self.ms[i - 1 : i + 1]
        return float(ends[0] + (accuracy - low) / (high - low) * (ends[1] - ends[0]))
