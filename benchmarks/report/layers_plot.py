"""Draws where the time of every segment goes, operator by operator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lgvit_edge._support.optional import require
from lgvit_edge.benchmarks.report.layers import BETWEEN, parts_of
from lgvit_edge.benchmarks.report.terminal import precision_of

_SHOWN = 7  # operators with a colour of their own
_GREYS = {"other": "0.75", BETWEEN: "0.9"}


def draw(record: dict[str, Any], path: Path, kind: str) -> None:
    """Draws a bar for each segment, the chain and the baseline: ms for a billion MACs.

    ``kind`` is that of the file: ``png``, ``svg`` or ``pdf``.

    Raises:
        MissingDependency: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    figures = require("matplotlib.figure", extra="report")
    rows = [*record["segments"], record["chain"], record["baseline"]]
    kinds = [part["kind"] for part in record["chain"]["kinds"][:_SHOWN]]
    figure = figures.Figure(figsize=(9, 1.8 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(rows)
    for name in (*kinds, *_GREYS):
        widths = [_width(row, name, kinds) for row in rows]
        colour = {"color": _GREYS[name]} if name in _GREYS else {}
        axes.barh(range(len(rows)), widths, left=left, height=0.7, label=name, **colour)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    plain = [1e9 * row["ms"] / row["macs"] for row in rows]
    style = {"marker": "|", "color": "black", "linestyle": "none", "markersize": 14}
    axes.plot(plain, range(len(rows)), label="without the profiler", **style)
    axes.axvline(left[-1], color="0.4", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(rows)), [_label(row, record) for row in rows])
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    words = axes.secondary_yaxis("right")
    words.set_yticks(range(len(rows)), [_told(row) for row in rows])
    words.tick_params(length=0)
    words.spines["right"].set_visible(False)
    runtime = record["env"]["runtime"]
    axes.set_xlabel("ms for a billion MACs, with the profiler (dashed: the baseline's)")
    axes.set_title(
        f"{runtime['backend']} {runtime['version']}, {runtime['device']}, {runtime['threads']} "
        f"threads, {precision_of(record)}, medians of {record['runs']} runs",
        fontsize=10,
    )
    figure.legend(loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.savefig(path, format=kind, dpi=150)


def _width(row: dict[str, Any], name: str, kinds: list[str]) -> float:
    parts = parts_of(row)
    if name == "other":
        ms = sum(part["ms"] for kind, part in parts.items() if kind not in (*kinds, BETWEEN))
    else:
        ms = parts[name]["ms"] if name in parts else 0.0
    return 1e9 * float(ms) / int(row["macs"])


def _label(row: dict[str, Any], record: dict[str, Any]) -> str:
    if "segment" in row:
        blocks = f"{row['first_block']}-{row['last_block']}"
        return f"segment {row['segment']}: {blocks}, {row['head']}"
    return "chain" if row is record["chain"] else "baseline"


def _told(row: dict[str, Any]) -> str:
    if "segment" not in row:
        return f"{row['ms']:.2f} ms"
    shares = f"{row['time_share']:.1%} of time, {row['macs_share']:.1%} of MACs"
    return f"{row['ms']:.2f} ms: {shares}"
