"""Draws accuracy against speed-up, one line per policy, as in the paper's Figure 1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lgvit_edge._support.optional import require
from lgvit_edge.policies.base import POLICIES

_MARKERS = "osv^DPX"
Lines = Mapping[str, Iterable[Mapping[str, Any]]]


def by_label(policies: Lines) -> Lines:
    """Returns the same rows (``Outcome.to_json``) under each policy's label instead of its name."""
    return {POLICIES[name].label: rows for name, rows in policies.items()}


def draw_lines(
    axes: Any, lines: Lines, over: str, *, colours: Sequence[str | None] = (None,), **style: Any
) -> None:
    """Draws one line with markers for each label: accuracy in percent over the rows' key ``over``.

    Markers and colours repeat if there are more lines. The colour None is matplotlib's next one.
    """
    for place, (label, rows) in enumerate(lines.items()):
        ordered = sorted(rows, key=lambda row: float(row[over]))
        axes.plot(
            [row[over] for row in ordered],
            [100 * row["accuracy"] for row in ordered],
            marker=_MARKERS[place % len(_MARKERS)],
            color=colours[place % len(colours)],
            label=label,
            **style,
        )


def draw(
    lines: Lines,
    path: Path,
    *,
    baseline: float,
    title: str,
    drop: float | None = None,
    limits: tuple[tuple[float, float], tuple[float, float]] | None = None,
    base: str = "without exits",
) -> None:
    """Writes the picture of accuracy against speed-up in MACs, with one line per label.

    The ``baseline`` is called ``base``. A ``drop`` of accuracy (0..1) below it is marked with a
    line. ``limits`` are the ranges of the speed-up, and of accuracy in percent; None fits the rows.

    Raises:
        MissingDependency: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    figure_module = require("matplotlib.figure", extra="train")
    figure = figure_module.Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    final = 100 * baseline
    axes.axhline(final, color="0.6", linewidth=1, linestyle="--")
    if drop is not None:
        axes.axhline(final - 100 * drop, color="0.85", linewidth=1)
    place = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
    axes.annotate(f"{base} {final:.1f} %", (0.99, final), color="0.4", fontsize=8, **place)
    draw_lines(axes, lines, "macs_speedup", markersize=4, linewidth=1.2)
    if limits is not None:
        axes.set_xlim(limits[0])
        axes.set_ylim(limits[1])
    axes.set_xlabel("speed-up in MACs")
    axes.set_ylabel("accuracy (%)")
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150, format="png")
