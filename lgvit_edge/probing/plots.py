"""Draws what a probe found, in the style of the other reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lgvit_edge.benchmarks.report.plots import INK, MUTED, SERIES, Plot, in_picture, plot

_TICKS = 45  # names along a side of a heatmap, of which each can be read
_LEAST = 20  # images of a bin of which a share can be told
COLOURS = "viridis"  # light is alike, as in the paper; it is told apart on light and dark pages


def heatmap(record: dict[str, Any], first: int, second: int) -> Plot:
    """Draws CKA between all stages of two of the networks, or of one (Figure 5)."""
    names, matrix = between(record["cka"], first, second)
    rows, columns = names
    titles = [record["models"][number]["name"] for number in (first, second)]

    def paint(axes: Any, narrow: bool) -> None:
        most, size = (_TICKS // 3, 5) if narrow else (_TICKS, 6)
        shown = paint_heatmap(
            axes, names, matrix, titles, most=most, size=size, colours=(INK, SERIES[1])
        )
        axes.figure.colorbar(shown, ax=axes, label="CKA", shrink=0.8)

    if first == second:
        what = f"{titles[0]} with itself"
        beside = matrix[np.arange(1, len(matrix)), np.arange(len(matrix) - 1)]
        pairs = _mean(matrix[~np.eye(len(matrix), dtype=bool)])
        figures = f"Neighbouring stages: {_mean(beside)} on average; all pairs: {pairs}"
    else:
        what = f"{titles[0]} with {titles[1]}"
        half = (len(columns) + 1) // 2
        figures = (
            f"Mean with the lower half of {titles[1]}: {_mean(matrix[:, :half])}, with the upper "
            f"half: {_mean(matrix[:, half:])}"
        )
    alt = f"Heatmap of {len(rows)} by {len(columns)} stages, light where alike. {figures}"
    height = 2.2 + 0.1 * min(len(rows), _TICKS)
    return plot(
        "heatmap" + "ab"[first] + "ab"[second],
        f"How alike: {what}",
        "CKA of every two stages, from input to output: 1 where one holds the same as the other, "
        "turned and scaled, 0 where they have nothing in common. "
        + "Tokens of blocks are normed. " * record["normed"]
        + f"Coloured names: what exits make of their block. {figures}.",
        alt,
        paint,
        wide=(7.2, height),
        narrow=(3.5, 3.6),
    )


def paint_heatmap(
    axes: Any,
    names: tuple[list[str], list[str]],
    matrix: np.ndarray[Any, np.dtype[np.float64]],
    titles: Sequence[str],
    *,
    most: int,
    size: int,
    colours: tuple[str, str],
) -> Any:
    """Paints CKA between stages on matplotlib axes, and returns the image for a bar of colours.

    Args:
        axes: of matplotlib.
        names: of the stages of both networks, as ``between`` returns them.
        matrix: CKA between them.
        titles: what the two networks are called.
        most: names along a side.
        size: of their letters, in points.
        colours: of names, and of those of what exits make.
    """
    shown = axes.imshow(
        matrix, cmap=COLOURS, vmin=0, vmax=1, origin="lower", aspect="auto", interpolation="none"
    )
    axes.grid(visible=False)
    for axis, side in zip((axes.yaxis, axes.xaxis), names, strict=True):
        places = range(0, len(side), -(-len(side) // most))
        axis.set_ticks(places, [in_picture(side[place]) for place in places])
        axis.set_tick_params(labelsize=size, rotation=90 * (axis is axes.xaxis))
        for label, place in zip(axis.get_ticklabels(), places, strict=True):
            label.set_color(colours[_is_head(side[place])])
    axes.set(xlabel=in_picture(titles[1]), ylabel=in_picture(titles[0]))
    return shown


def between(
    cka: dict[str, Any], first: int, second: int
) -> tuple[tuple[list[str], list[str]], np.ndarray[Any, np.dtype[np.float64]]]:
    """Returns the names of two networks' stages, and CKA between them, NaN where not defined.

    ``cka`` is that of a record; the networks are numbered from 0, and may be one.
    """
    rows, columns = (
        [place for place, stage in enumerate(cka["stages"]) if stage["model"] == number]
        for number in (first, second)
    )
    matrix = np.array(cka["matrix"], np.float64)[np.ix_(rows, columns)]  # null becomes NaN
    stages = [stage["name"] for stage in cka["stages"]]
    return ([stages[row] for row in rows], [stages[column] for column in columns]), matrix


def _is_head(stage: str) -> bool:
    """Says whether a stage is that of an exit: its head's features, or its logits."""
    return stage.startswith(("head ", "exit "))


def _mean(values: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    known = values[~np.isnan(values)]
    return f"{known.mean():.2f}" if known.size else "not defined"


def calibration(model: dict[str, Any]) -> Plot:
    """Draws how often answers of each confidence are right, by exit."""
    rows = model["exits"]
    images = sum(part["images"] for part in rows[0]["calibration"])
    least = min(_LEAST, images // 30)

    def paint(axes: Any, narrow: bool) -> None:
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=1, linestyle="--")
        for row in rows:
            final = row is rows[-1]
            parts = [part for part in row["calibration"] if part["images"] >= least]
            axes.plot(
                [100 * part["confidence"] for part in parts],
                [100 * part["accuracy"] for part in parts],
                color=INK if final else SERIES[(row["exit"] - 1) % len(SERIES)],
                linestyle="-" if final or row["exit"] <= len(SERIES) else ":",
                linewidth=1.2,
                marker="o",
                markersize=2.5,
                label="final" if final else f"exit {row['exit']}",
            )
        axes.set(xlabel="confidence (%)", ylabel="answers that are right (%)")
        if narrow:
            axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.2), ncols=3)
        else:
            axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))

    figures = "; ".join(
        f"exit {row['exit']} {100 * row['calibration_error']:.1f} points" for row in rows
    )
    return plot(
        "calibration",
        "What a confidence is worth",
        "Answers in 15 bins of confidence. On the dashed line, seven in ten answers of confidence "
        "70 % are right; below it the exit is too sure."
        + f" Bins of fewer than {least} images are left out."
        * (least > 1),
        f"Line chart. Mean distance from the dashed line (ECE): {figures}",
        paint,
        narrow=(3.5, 4.4),
    )


def agreement(model: dict[str, Any]) -> Plot:
    """Draws how often each two exits give the same answer."""
    matrix = 100 * np.array(model["agreement"])
    names = [str(row["exit"]) for row in model["exits"][:-1]] + ["final"]

    def paint(axes: Any, narrow: bool) -> None:
        axes.imshow(matrix, cmap=COLOURS, vmin=0, vmax=100, origin="lower", interpolation="none")
        axes.grid(visible=False)
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="exit", ylabel="exit")
        for (y, x), value in np.ndenumerate(matrix):
            colour = "#ffffff" if value < 60 else "#000000"
            size = 6 if narrow or len(names) > 10 else 8
            axes.annotate(
                f"{value:.0f}", (x, y), ha="center", va="center", color=colour, fontsize=size
            )

    with_final = "; ".join(
        f"{name} {value:.0f} %" for name, value in zip(names[:-1], matrix[-1, :-1], strict=True)
    )
    return plot(
        "agreement",
        "Which exits agree",
        "Share of images (%) to which two exits give the same answer.",
        f"Heatmap. Exits that answer as the final classifier does: {with_final}",
        paint,
        wide=(7.2, 3.8),
        narrow=(3.5, 3.3),
    )


def accuracies(model: dict[str, Any]) -> Plot:
    """Draws accuracy by exit, and what going on mends and spoils."""
    rows, thought = model["exits"], model["overthinking"]
    names = [f"{row['exit']}\n({row['block']})" for row in rows[:-1]]
    names.append(f"final\n({rows[-1]['block']})")

    def paint(axes: Any, narrow: bool) -> None:
        places = np.arange(len(rows))
        accuracy = np.array([100 * row["accuracy"] for row in rows])
        mended = 100 * np.array([*thought["mended_by_exit"], 0])
        spoilt = 100 * np.array([*thought["spoilt_by_exit"], 0])
        axes.bar(places, accuracy - spoilt, color=SERIES[2], label="right, and at the end too")
        axes.bar(
            places, spoilt, bottom=accuracy - spoilt, color=SERIES[1], label="right, then spoilt"
        )
        axes.bar(
            places, mended, bottom=accuracy, color="none", edgecolor=MUTED, linewidth=0.8,
            label="wrong, then mended",
        )  # fmt: skip
        axes.set_xticks(places, names)
        axes.grid(axis="x", visible=False)
        axes.set(xlabel="exit (block)", ylabel="images (%)")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=1 if narrow else 3)

    figures = "; ".join(f"exit {row['exit']} {100 * row['accuracy']:.1f} %" for row in rows)
    return plot(
        "accuracies",
        "Right early, wrong late",
        f"Of all images {100 * thought['destructive']:.1f} % are right at some exit and wrong at "
        "the end. An oracle that leaves every image at its first right exit would be right on "
        f"{100 * thought['oracle_accuracy']:.1f} %, after {thought['oracle_mean_block']:.1f} "
        "blocks on average.",
        f"Bar chart of accuracy: {figures}",
        paint,
    )
