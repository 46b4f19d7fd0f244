"""What one image got."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """What one image got.

    Attributes:
        class_index: predicted class, 0..C - 1.
        label: its name, or the index as text where the bundle has no names.
        confidence: its probability at the exit taken, 0..1.
        exit: exit taken, 1..M + 1; M + 1 is the final classifier.
        block: block after which that exit lies.
        latency_ms: from decoded frame to label; in a batch, until this image's exit.
        network_ms: the part of it spent in the chain and the policy.
    """

    class_index: int
    label: str
    confidence: float
    exit: int
    block: int
    latency_ms: float
    network_ms: float
