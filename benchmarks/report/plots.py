"""Draws the pictures of a report as SVG, in two widths, with colours from the page."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lgvit_edge._support.optional import require
from lgvit_edge._support.text import escaped
from lgvit_edge.policies.picture import by_label, draw_lines

# Placeholder colours; the page's own variables replace them, for light and dark mode.
INK, MUTED, GRID = "#010101", "#020202", "#030303"
SERIES = ("#0a0001", "#0a0002", "#0a0003", "#0a0004", "#0a0005")
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid"} | {
    colour: f"series-{i}" for i, colour in enumerate(SERIES, 1)
}
_ENDS = {"relpos": (0, 0.5), "shrinkB": 5}  # from a name's left side to just outside its point
_WIDE, _NARROW = (7.2, 3.4), (3.5, 3.3)  # inches, at 100 pixels each
_STYLE = {
    "svg.fonttype": "path",  # the same on every machine, whatever fonts are installed
    "svg.hashsalt": "lgvit-edge",
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


@dataclass(frozen=True)
class Plot:
    """Holds one picture and its texts."""

    title: str  # printed above it
    caption: str  # what it shows and how to read it
    alt: str  # description for readers who cannot see it, with the main figures
    wide: str  # SVG for screens and paper
    narrow: str  # SVG for phones


def plot(
    name: str,
    title: str,
    caption: str,
    alt: str,
    paint: Callable[[Any, bool], None],
    *,
    wide: tuple[float, float] = _WIDE,
    narrow: tuple[float, float] = _NARROW,
) -> Plot:
    """Draws a picture in both widths.

    ``name``, of letters only, makes ids unique on the page. ``paint`` is called with matplotlib
    axes and whether they are narrow; ``wide`` and ``narrow`` are their sizes in inches.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    matplotlib = require("matplotlib", extra="report")
    figures = require("matplotlib.figure", extra="report")

    def drawn(size: tuple[float, float], is_narrow: bool) -> str:
        with matplotlib.rc_context(_STYLE):
            figure = figures.Figure(figsize=size, layout="constrained")
            paint(figure.subplots(), is_narrow)
            buffer = io.StringIO()
            with lacking_letters():
                figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        return _themed(buffer.getvalue(), f"{name}-{'n' if is_narrow else 'w'}-")

    return Plot(title, caption, alt, drawn(wide, False), drawn(narrow, True))


def _themed(svg: str, prefix: str) -> str:
    """Prepare SVG for the page: colours become variables, ids unique, the size that of its box."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    for side in ("width", "height"):
        svg = re.sub(rf'(<svg[^>]*?) {side}="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}', svg)
    svg = svg.replace("url(#", f"url(#{prefix}")
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)


@contextlib.contextmanager
def lacking_letters() -> Iterator[None]:
    """Is silent about letters that matplotlib's font lacks, of which it draws boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        yield


def in_picture(text: str) -> str:
    """Returns text as matplotlib shows it: no formula, and not hidden for an underscore."""
    return " " * text.startswith("_") + escaped(text).replace("$", r"\$")


def tradeoff(record: dict[str, Any]) -> Plot:
    """Draws accuracy against speed-up: all policies, the operating points, and this run."""
    policies, points = record["survey"]["policies"], record["survey"]["points"]
    base, accuracy = record["baseline_accuracy"], record["accuracy"]
    speed = record["speedup"]["wall_clock"]

    def paint(axes: Any, narrow: bool) -> None:
        style = {"markersize": 3, "linewidth": 1.2}
        draw_lines(axes, by_label(policies), "wall_clock_speedup", colours=SERIES, **style)
        for row in points.values():
            place = (row["wall_clock_speedup"], 100 * row["accuracy"])
            axes.plot(*place, "o", color=INK, markersize=8, fillstyle="none", markeredgewidth=1.5)
        axes.plot([speed], [100 * accuracy], "*", color=INK, markersize=12, label="this run")
        axes.plot([1], [100 * base], "s", color=INK, markersize=6, label="without exits")
        axes.set(xlabel="speed-up in time, against the model without exits", ylabel="accuracy (%)")
        _name_points(axes, points)
        if narrow:  # a legend inside would cover the lines
            axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.2), ncols=1)
            axes.set_xlabel("speed-up in time")
        else:
            axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))

    named = "; ".join(
        f"{name}: {100 * row['accuracy']:.1f} % at {row['wall_clock_speedup']:.2f}x"
        for name, row in points.items()
    )
    return plot(
        "tradeoff",
        "Accuracy against speed-up",
        "Every policy at many settings, computed from the logits of all exits and the measured "
        "time of each segment. Up and to the right is better. Circles: the bundle's operating "
        "points; star: this run, measured.",
        f"Line chart. Without exits {100 * base:.1f} %. This run: {100 * accuracy:.1f} % at "
        f"{speed:.2f}x. {named}",
        paint,
        narrow=(3.5, 4.6),
    )


def _name_points(axes: Any, points: dict[str, Any]) -> None:
    """Write names in the upper right corner, where no curve runs, with lines to the points."""
    if len(points) > 6:
        return  # the table names them all
    ordered = sorted(points.items(), key=lambda item: -item[1]["accuracy"])
    for place, (name, row) in enumerate(ordered):
        axes.annotate(
            name if len(name) <= 16 else f"{name[:15]}\u2026",
            (row["wall_clock_speedup"], 100 * row["accuracy"]),
            xytext=(0.99, 0.97 - 0.08 * place),
            textcoords="axes fraction",
            fontsize=8,
            ha="right",
            va="center",
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.7, **_ENDS},
        )


def latencies(record: dict[str, Any]) -> Plot:
    """Draws the latency of images by exit, and of the baseline: median, middle half, p95, p99."""
    raw = record["raw"]
    exits, ms = np.array(raw["exit"]), np.array(raw["latency_ms"])
    groups = [(f"exit {e}", ms[exits == e]) for e in sorted(set(raw["exit"]))]
    groups += [("all exits", ms), ("baseline", np.array(raw["baseline_ms"]))]

    def paint(axes: Any, narrow: bool) -> None:
        for place, (name, values) in enumerate(groups):
            p5, p25, p50, p75, p95, p99 = np.percentile(values, [5, 25, 50, 75, 95, 99])
            colour = {"baseline": SERIES[1], "all exits": SERIES[2]}.get(name, SERIES[0])
            axes.plot([p5, p95], [place, place], color=colour, linewidth=1.5)
            axes.barh(place, max(p75 - p25, 1e-9), left=p25, height=0.6, color=colour)
            axes.plot([p50, p50], [place - 0.3, place + 0.3], color=INK, linewidth=1.5)
            axes.plot([p99], [place], "|", color=colour, markersize=7)
        axes.set_yticks(range(len(groups)), [name for name, _ in groups])
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"latency{',' if narrow else ' from decoded'} frame to label (ms)")

    figures = "; ".join(f"{name} {np.median(values):.2f} ms" for name, values in groups)
    return plot(
        "latency",
        "Latency by exit",
        "Box: the middle half of the images; line across it: their median; thin line: 5th to 95th "
        "percentile; tick: 99th.",
        f"Box chart of medians: {figures}",
        paint,
    )


def departures(record: dict[str, Any]) -> Plot:
    """Draws the share of images that leave at each exit, and how many are answered rightly."""
    rows = record["exits"]
    labelled = record["accuracy"] is not None

    def paint(axes: Any, narrow: bool) -> None:
        places = [row["index"] for row in rows]
        shares = np.array([100 * row["share"] for row in rows])
        right = shares * np.array([row["accuracy"] or 0 for row in rows])
        if labelled:
            axes.bar(places, right, color=SERIES[2], label="answered rightly")
            axes.bar(places, shares - right, bottom=right, color=SERIES[1], label="wrongly")
            for row, share in zip(rows, shares, strict=True):
                if row["accuracy"] is not None and len(rows) <= 14:
                    text = f"{100 * row['accuracy']:.0f} %"
                    place = (row["index"], share)
                    axes.annotate(text, place, ha="center", va="bottom", fontsize=7)
        else:
            axes.bar(places, shares, color=SERIES[0])
        below = "exit (the last is the final classifier)"
        _label(axes, places, below, "share of images (%)", legend=labelled)

    figures = "; ".join(
        f"exit {row['index']} {row['share']:.1%}"
        + (f", {row['accuracy']:.1%} right" if row["accuracy"] is not None else "")
        for row in rows
    )
    caption = "Above each bar: how many of the images that leave there are answered rightly."
    if not labelled:
        caption = "Accuracy is unknown: the images have no classes, or random frames were used."
    return plot("departures", "Where images leave", caption, f"Bar chart: {figures}", paint)


def segments(record: dict[str, Any]) -> Plot:
    """Draws the cost of each segment: its share of the baseline's time, and of its MACs."""
    rows = record["survey"]["segments"]
    base_ms = record["baseline"]["network_ms"]["mean"]
    base_macs = record["baseline"]["macs"]
    ms = [100 * row["ms"] / base_ms for row in rows]
    macs = [100 * row["macs"] / base_macs for row in rows]

    def paint(axes: Any, narrow: bool) -> None:
        places = np.arange(len(rows))
        axes.bar(places - 0.2, ms, 0.4, color=SERIES[0], label="time, measured")
        axes.bar(places + 0.2, macs, 0.4, color=SERIES[3], label="MACs")
        share = "% of baseline" if narrow else "share of the baseline (%)"
        _label(axes, places, "segment (blocks up to an exit, and its head)", share)

    pairs = enumerate(zip(ms, macs, strict=True))
    figures = "; ".join(f"{i}: {t:.1f} % of time, {m:.1f} % of MACs" for i, (t, m) in pairs)
    return plot(
        "segments",
        "Cost of each segment",
        f"All segments together take {sum(ms):.0f} % of the baseline's time and {sum(macs):.0f} % "
        "of its MACs: anything above 100 % is the cost of the exits.",
        f"Bar chart by segment, share of the baseline. {figures}",
        paint,
    )


def _label(axes: Any, places: Any, xlabel: str, ylabel: str, legend: bool = True) -> None:
    axes.set_xticks(places if len(places) <= 16 else places[:: len(places) // 8])
    axes.grid(axis="x", visible=False)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if legend:  # above the bars
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
