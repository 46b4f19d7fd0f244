"""From logits of all exits to the study's tables and picture; nothing is trained or timed here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.optional import require
from lgvit_edge.policies import (
    Confidence,
    Entropy,
    Never,
    Patience,
    PatientConfidence,
    Policy,
)

_LEVELS = np.linspace(0.02, 0.998, 200)


@dataclass(frozen=True)
class Case:
    """One row of a table.

    Attributes:
        name: of the row.
        heads: as ``train --heads``.
        exits: as ``train --exits``.
        scheme: as ``train --scheme``.
        policy: of ``lgvit_edge.policies.rules``.
        kl: as ``train --kl``.
    """

    name: str
    heads: str
    exits: str
    scheme: str
    policy: str
    kl: str = "image"

    @property
    def learned_by(self) -> str:
        """The scheme that gives the same heads where the backbone is frozen."""
        return "normal" if self.scheme == "alternating" else self.scheme

    @property
    def training(self) -> str:
        """Name of the checkpoint; rows that differ in their policy alone share it."""
        name = f"{self.heads}-{self.exits.replace(':', '')}-{self.learned_by}"
        return name if self.kl == "image" else f"{name}-{self.kl}"


@dataclass(frozen=True)
class Measured:
    """A trained model on labelled images.

    Attributes:
        logits: ``[n, M + 1, C] float32``.
        labels: ``[n] int64``.
        macs: cumulative, to the answer of each of the M + 1 exits.
        baseline: MACs of the model without exits.
        blocks: of the M exits, then L.
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    macs: NDArray[np.int64]
    baseline: int
    blocks: NDArray[np.int64]

    def half(self, odd: int) -> Measured:
        """Every other image, of each class alike."""
        return Measured(
            self.logits[odd::2], self.labels[odd::2], self.macs, self.baseline, self.blocks
        )

    @property
    def accuracies(self) -> list[float]:
        """Top-1 0..1 of every exit, the final classifier last."""
        right = self.logits.argmax(axis=-1) == self.labels[:, None]
        return [float(share) for share in right.mean(axis=0)]


def settings(policy: str, exits: int) -> list[Policy]:
    """A policy from careless to careful, finely."""
    if policy == "patience":
        return [*(Patience(n) for n in range(1, exits + 1)), Never()]
    if policy == "patient_confidence":
        return [*(PatientConfidence(float(t), 2) for t in _LEVELS), Never()]
    if policy == "entropy":
        return [*(Entropy(float(t)) for t in np.geomspace(5, 0.001, 200)), Never()]
    return [*(Confidence(float(t)) for t in _LEVELS), Never()]


def on(policy: Policy, measured: Measured) -> dict[str, Any]:
    """What a policy does: accuracy, MACs, speed-ups, and where images leave, rightly or not."""
    exits, answers = policy.replay(measured.logits)
    taken, right = exits - 1, answers == measured.labels
    count = measured.logits.shape[1]
    shares = np.bincount(taken, minlength=count) / len(taken)
    correct = np.bincount(taken, weights=right, minlength=count) / len(taken)
    macs = float(shares @ measured.macs)
    return {
        "policy": policy.to_json(),
        "accuracy": float(right.mean()),
        "macs": macs,
        "speedup_macs": measured.baseline / macs,
        "speedup_layers": float(measured.blocks[-1] / (shares @ measured.blocks)),
        "shares": shares.tolist(),
        "correct_shares": correct.tolist(),
    }


def choose(
    policy: str, tuning: Measured, *, speed_up: float | None = None, drop: float | None = None
) -> Policy | None:
    """The best setting on the tuning images.

    Args:
        policy: of ``lgvit_edge.policies.rules``.
        tuning: labelled images that are not reported on.
        speed_up: most accurate of those at least this much faster in MACs; or
        drop: fastest of those that lose at most this much accuracy, 0..1.

    Returns:
        None where no setting does.
    """
    tried = [(s, on(s, tuning)) for s in settings(policy, tuning.logits.shape[1] - 1)]
    if speed_up is not None:
        kept = [(found["accuracy"], s) for s, found in tried if found["speedup_macs"] >= speed_up]
    else:
        least = tuning.accuracies[-1] - (drop or 0.0)
        kept = [(found["speedup_macs"], s) for s, found in tried if found["accuracy"] >= least]
    return max(kept, key=lambda pair: pair[0])[1] if kept else None


def curve(policy: str, reporting: Measured) -> list[dict[str, Any]]:
    """Every setting on the reporting images, slowest first."""
    points = [on(s, reporting) for s in settings(policy, reporting.logits.shape[1] - 1)]
    return sorted(points, key=lambda point: point["speedup_macs"])


def tables(record: dict[str, Any]) -> str:
    """The study as Markdown."""
    base, how = record["baseline"], record["conditions"]
    lines = [
        f"Baseline without exits: {base['accuracy']:.2%} on the {how['reporting']} reporting "
        f"images ({base['accuracy_all']:.2%} on all), {base['macs'] / 1e9:.3f} G MACs, "
        f"{base['parameters'] / 1e6:.2f} M parameters.",
        "",
    ]
    for title, rows in record["tables"].items():
        lines += [f"## {title}", "", *_table(rows, how), ""]
    return "\n".join(lines)


def _table(rows: Sequence[dict[str, Any]], how: dict[str, Any]) -> list[str]:
    fast, sure = f"at >= {how['speed_up']}x MACs", f"losing <= {100 * how['drop']:.0f} points"
    head = (
        f"| | parameters, M | accuracy {fast} | MACs, G | MACs x | layers x | wall clock x | "
        f"accuracy {sure} | MACs, G | MACs x | layers x | accuracy of each exit, % |"
    )
    lines = [head, "|---" * (head.count("|") - 1) + "|"]
    for row in rows:
        cells = [row["name"], f"{row['parameters'] / 1e6:.2f}"]
        cells += _cells(row["at_speedup"], wall=True) + _cells(row["at_accuracy"], wall=False)
        exits = zip(row["blocks"], row["accuracies"], strict=True)
        cells.append(", ".join(f"{block}: {100 * a:.1f}" for block, a in exits))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cells(point: dict[str, Any] | None, *, wall: bool) -> list[str]:
    if point is None:
        return ["not reached"] + ["-"] * (3 + wall)
    cells = [
        f"{point['accuracy']:.2%}",
        f"{point['macs'] / 1e9:.3f}",
        f"{point['speedup_macs']:.2f}",
        f"{point['speedup_layers']:.2f}",
    ]
    measured = point.get("wall_clock")
    return cells + ([f"{measured:.2f}" if measured else "-"] if wall else [])


def draw(record: dict[str, Any], path: Path) -> None:
    """The paper's Figure 1: accuracy against speed-up on the reporting images, a line per method.

    Raises:
        MissingDependency: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    figure = require("matplotlib.figure", extra="train").Figure(
        figsize=(7.5, 5), layout="constrained"
    )
    axes = figure.subplots()
    base = 100 * record["baseline"]["accuracy"]
    axes.axhline(base, color="0.6", linewidth=1, linestyle="--")
    axes.annotate(f"without exits {base:.1f} %", (2.48, base + 0.3), color="0.4", ha="right")
    axes.axhline(base - 100 * record["conditions"]["drop"], color="0.85", linewidth=1)
    for marker, (name, points) in zip("osv^DPX", record["curves"].items(), strict=False):
        shown = [(p["speedup_macs"], 100 * p["accuracy"]) for p in points]
        axes.plot(*zip(*shown, strict=True), marker=marker, markersize=3, linewidth=1.2, label=name)
    axes.set_xlim(0.95, 2.5)
    axes.set_ylim(base - 25, base + 2)
    axes.set_xlabel("speed-up in MACs")
    axes.set_ylabel("accuracy on held-out images (%)")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
