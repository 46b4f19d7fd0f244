"""What the exits are worth: accuracy against speed-up over thresholds, for every policy.

Torch-free: works on the logits of all exits of a set of labelled images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.optional import require
from lgvit_edge.policies.base import Policy
from lgvit_edge.policies.rules import (
    Confidence,
    Ensemble,
    Entropy,
    Patience,
    PatientConfidence,
)

Logits = NDArray[np.float32]
Labels = NDArray[np.int64]
NAMES = {
    "confidence": "confidence",
    "entropy": "entropy",
    "ensemble": "ensemble of exits",
    "patience": "patience (PABEE)",
    "patient_confidence": "patience and confidence (PCEE)",
}


@dataclass(frozen=True)
class Point:
    """One policy with its settings on a set of images.

    Attributes:
        policy: as ``lgvit_edge.policies.rules`` writes it.
        accuracy: top-1 of the answers given, 0..1.
        layers: speed-up in blocks, Eq. 17 of the paper.
        macs: speed-up in MACs against the baseline, heads included.
        shares: of the images per exit, the final classifier last.
    """

    policy: dict[str, Any]
    accuracy: float
    layers: float
    macs: float
    shares: tuple[float, ...]


def policies(exits: int) -> dict[str, list[Policy]]:
    """Every policy at settings from careless to careful.

    Args:
        exits: M.
    """
    levels = [round(0.05 * i, 2) for i in range(2, 20)] + [0.97, 0.99, 0.999]
    nats = [0.01 * 1.35**i for i in range(21)]
    return {
        "confidence": [Confidence(t) for t in levels],
        "entropy": [Entropy(t) for t in reversed(nats)],
        "ensemble": [Ensemble(t) for t in levels],
        "patience": [Patience(n) for n in range(1, exits + 1)],
        "patient_confidence": [PatientConfidence(t, 2) for t in levels],
    }


def sweep(
    logits: Logits, labels: Labels, macs: Sequence[int], baseline: int, blocks: Sequence[int]
) -> dict[str, list[Point]]:
    """Points of every policy.

    Args:
        logits: ``[n, M + 1, C] float32``.
        labels: ``[n] int64``.
        macs: of the M + 1 segments.
        baseline: MACs of the model without exits.
        blocks: of the M exits, then L.
    """
    return {
        name: [point(p, logits, labels, macs, baseline, blocks) for p in settings]
        for name, settings in policies(logits.shape[1] - 1).items()
    }


def point(
    policy: Policy,
    logits: Logits,
    labels: Labels,
    macs: Sequence[int],
    baseline: int,
    blocks: Sequence[int],
) -> Point:
    """What one policy gives; the other arguments as for ``sweep``."""
    exits, answers = policy.replay(logits)
    taken = exits - 1
    shares = np.bincount(taken, minlength=logits.shape[1]) / len(labels)
    return Point(
        policy.to_json(),
        float((answers == labels).mean()),
        float(blocks[-1] / (shares @ np.array(blocks))),
        float(baseline / (shares @ np.cumsum(macs))),
        tuple(float(share) for share in shares),
    )


def summary(
    logits: Logits, labels: Labels, macs: Sequence[int], baseline: int, blocks: Sequence[int]
) -> dict[str, Any]:
    """Accuracy of each exit, of an oracle, and every policy's points; arguments as for ``sweep``.

    The oracle leaves at the first exit that is right, and at the last when none is: what no policy
    can do better.
    """
    right = logits.argmax(axis=-1) == labels[:, None]
    first = np.where(right.any(axis=1), right.argmax(axis=1), logits.shape[1] - 1)
    layers = blocks[-1] / float(np.array(blocks)[first].mean())
    return {
        "images": len(labels),
        "accuracy": [float(a) for a in right.mean(axis=0)],
        "oracle": {"accuracy": float(right.any(axis=1).mean()), "layers": layers},
        "policies": {
            name: [vars(point) for point in points]
            for name, points in sweep(logits, labels, macs, baseline, blocks).items()
        },
    }


def draw(found: dict[str, Any], path: Path, *, title: str) -> None:
    """The paper's Figure 1 of a ``summary``: accuracy against speed-up, a line per policy.

    Raises:
        MissingDependency: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    figure_module = require("matplotlib.figure", extra="train")
    figure = figure_module.Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    final = 100 * found["accuracy"][-1]
    axes.axhline(final, color="0.6", linewidth=1, linestyle="--")
    place = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
    axes.annotate(f"without exits {final:.1f} %", (0.99, final), color="0.4", fontsize=8, **place)
    for marker, (name, points) in zip("osv^D", found["policies"].items(), strict=True):
        ordered = sorted(points, key=lambda point: point["macs"])
        speed_ups = [point["macs"] for point in ordered]
        accuracies = [100 * point["accuracy"] for point in ordered]
        axes.plot(speed_ups, accuracies, marker=marker, markersize=4, label=NAMES[name])
    axes.set_xlabel("speed-up in MACs")
    axes.set_ylabel("accuracy (%)")
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150, format="png")
