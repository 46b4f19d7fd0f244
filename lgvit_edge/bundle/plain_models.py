"""Plain models that a bundle was compared with, and whether it lies below one of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PlainModel:
    """What a model without exits gave, in turn with the bundle's baseline on the same images."""

    accuracy: float  # top-1, 0..1
    baseline_accuracy: float  # of the bundle's own model without exits
    latency_ms: float  # mean from decoded frame to label
    baseline_latency_ms: float
    images: int  # how many the accuracies are from
    device: str  # that times were measured on

    def __post_init__(self) -> None:
        if not (0 <= self.accuracy <= 1 and 0 <= self.baseline_accuracy <= 1):
            raise ValueError("accuracies must lie in 0..1")
        if not all(0 < ms < math.inf for ms in (self.latency_ms, self.baseline_latency_ms)):
            raise ValueError("latencies must be positive numbers")
        if self.images < 1:
            raise ValueError("images must be a count")

    @property
    def change(self) -> float:
        """Return its accuracy beyond the baseline's, in shares of all images."""
        return self.accuracy - self.baseline_accuracy

    @property
    def time_share(self) -> float:
        """Return its time over the baseline's."""
        return self.latency_ms / self.baseline_latency_ms


def better(
    models: Mapping[str, PlainModel], *, change: float, time_share: float, device: str
) -> list[str]:
    """Return what people read of the plain models that are as accurate as a chain, and faster.

    ``change`` is the chain's accuracy beyond its baseline's, ``time_share`` its time over the
    baseline's: both sides are related to the same baseline, so that other images and another day
    hardly matter. Times of another device tell nothing of this one.
    """
    return [
        f"the plain model {name!r} is better: against the baseline it gave "
        f"{100 * model.change:+.2f} points in {model.time_share:.2f} of the time ({model.images} "
        f"images), and this chain {100 * change:+.2f} points in {time_share:.2f}"
        for name, model in models.items()
        if model.device == device and model.change >= change and model.time_share < time_share
    ]
