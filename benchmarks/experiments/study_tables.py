"""Makes the study's tables and picture from the logits of all exits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lgvit_edge.policies import POLICIES, Never, Policy
from lgvit_edge.policies.evaluate import ExitCosts, Images, Outcome, evaluate
from lgvit_edge.policies.picture import draw as draw_lines

_STEPS = 200  # number of settings tried per policy


@dataclass(frozen=True)
class Case:
    """The training and policy behind one row of a table; settings are as ``train`` takes them."""

    name: str
    heads: str = "lgvit"
    exits: str = "uniform:8"
    scheme: str = "lgvit"
    policy: str = "confidence"
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
    """The logits of a trained model on labelled images, and its costs."""

    images: Images
    costs: ExitCosts  # nothing is timed

    def half(self, odd: int) -> Measured:
        """Returns every other image: the even ones, or the ``odd``."""
        logits, labels = self.images.logits, self.images.labels
        return Measured(Images(logits[odd::2], labels[odd::2]), self.costs)

    def gives(self, policy: Policy) -> Outcome:
        """Returns the outcome of a policy on the images."""
        return evaluate(policy, self.images, self.costs)


def settings(policy: str, exits: int) -> list[Policy]:
    """Returns fine settings of a policy, from least to most careful."""
    return [*POLICIES[policy].settings(exits, _STEPS), Never()]


def choose(
    policy: str, tuning: Measured, *, speed_up: float | None = None, drop: float | None = None
) -> Policy | None:
    """Returns the best setting on the tuning images, or None where no setting does.

    That is the most accurate of those at least ``speed_up`` times faster in MACs, or the fastest of
    those that lose at most ``drop`` of accuracy, 0..1.
    """
    tried = [tuning.gives(setting) for setting in settings(policy, tuning.images.exits)]
    if speed_up is not None:
        good = [(t.accuracy, t) for t in tried if t.macs_speedup >= speed_up]
    else:
        least = tuning.images.baseline_accuracy - (drop or 0.0)
        good = [(t.macs_speedup, t) for t in tried if t.accuracy >= least]
    return max(good, key=lambda pair: pair[0])[1].policy if good else None


def curve(policy: str, reporting: Measured) -> list[dict[str, Any]]:
    """Returns every setting's outcome on the reporting images, slowest first."""
    points = [reporting.gives(setting) for setting in settings(policy, reporting.images.exits)]
    return [point.to_json() for point in sorted(points, key=lambda point: point.macs_speedup)]


def tables(record: dict[str, Any]) -> str:
    """Returns the study as Markdown."""
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
    cells = [f"{point['accuracy']:.2%}", f"{point['macs'] / 1e9:.3f}"]
    cells += [f"{point[key]:.2f}" for key in ("macs_speedup", "layers_speedup")]
    measured = point.get("wall_clock")
    return cells + ([f"{measured:.2f}" if measured else "-"] if wall else [])


def draw(record: dict[str, Any], path: Path) -> None:
    """Draws accuracy against speed-up on the reporting images, a line per method (Figure 1)."""
    base, how = record["baseline"]["accuracy"], record["conditions"]
    draw_lines(
        record["curves"],
        path,
        baseline=base,
        title=f"{how['reporting']} held-out images",
        drop=how["drop"],
        limits=((0.95, 2.5), (100 * base - 25, 100 * base + 2)),
    )
