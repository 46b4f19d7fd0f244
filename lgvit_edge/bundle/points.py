"""Operating points: exit policies with the accuracy and latency measured for them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
# Points that are chosen without a goal, and the accuracy each may give up.
USUAL = {"accurate": 0.0, "balanced": 0.01, "fast": 0.03}
ASSUMPTION = (
    "it holds for images like those it was certified on: drawn alike, in any order (exchangeable), "
    "not for another camera, place or season"
)


def check_name(name: str) -> None:
    """Raise ``ValueError`` for names of operating points that are hard to type."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"the name of an operating point must be letters, digits, '-', '_' or '.', 64 at most, "
            f"found {name[:80]!r}"
        )


@dataclass(frozen=True)
class Guarantee:
    """A certified bound on the errors that early exits add (Learn-then-Test).

    With probability at least 1 - ``delta`` over the draw of the images it was certified on, the
    share of images that the chain gets wrong and the baseline right is at most ``risk``.
    """

    risk: float  # the bound, 0..1
    delta: float  # probability that the certificate is wrong, 0..1
    images: int  # certified on; neither the search nor the report used them
    errors: int  # how many of these the chain got wrong and the baseline right
    data_sha256: str  # over the content of the image files, in order

    def __post_init__(self) -> None:
        if not (0 < self.risk < 1 and 0 < self.delta < 1):
            raise ValueError("risk and delta must lie between 0 and 1")
        if not 0 <= self.errors <= self.images:
            raise ValueError("errors must be a part of the images")


@dataclass(frozen=True)
class OperatingPoint:
    """A policy with its thresholds, and its results on images that the search did not use."""

    policy: dict[str, Any]  # as ``lgvit_edge.policies.rules`` writes it
    accuracy: float  # top-1 of the chain, 0..1
    baseline_accuracy: float  # top-1 of the model without exits
    macs: float  # mean per image
    macs_speedup: float  # over the baseline
    latency_ms: float  # mean from decoded frame to label, from measured segment times
    baseline_latency_ms: float  # the baseline's mean, measured in the same run
    shares: tuple[float, ...]  # of images per exit, the final classifier last
    images: int  # how many these figures are from
    data_sha256: str  # over the content of the image files, in order
    device: str  # that times were measured on
    goal: str  # of the search
    guarantee: Guarantee | None  # a bound on wrong answers, if one was asked for

    def __post_init__(self) -> None:
        shares = (self.accuracy, self.baseline_accuracy, *self.shares)
        sizes = (self.macs, self.macs_speedup, self.latency_ms, self.baseline_latency_ms)
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError("accuracy and shares must lie in 0..1")
        if not all(0 < size < math.inf for size in sizes):
            raise ValueError("MACs, latencies and speed-up must be positive numbers")

    @property
    def wall_clock_speedup(self) -> float:
        """Return the speed-up of the mean latency over the baseline."""
        return self.baseline_latency_ms / self.latency_ms
