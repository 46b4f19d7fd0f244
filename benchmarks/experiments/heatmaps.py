"""Draws CKA heatmaps of records of ``lgvit-edge probe`` side by side (Figure 5).

``python -m lgvit_edge.benchmarks.experiments.heatmaps a.json a.json:1,1 b.json --out cka.png``
draws a panel of each: the stages of a record's first network against those of its second, or of
the two that are named, counted from 0.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lgvit_edge._support.optional import require
from lgvit_edge._support.outputs import write
from lgvit_edge.benchmarks.experiments.frame import run_command
from lgvit_edge.benchmarks.report.plots import lacking_letters
from lgvit_edge.cli.options import check_outputs
from lgvit_edge.errors import UsageError, in_one_line
from lgvit_edge.probing.plots import between, paint_heatmap

_TICKS = 14  # names along a side
_HEAD = "#c2410c"  # names of what exits make of their block


def main(
    panels: Annotated[list[str], typer.Argument(help="Records: FILE, or FILE:0,0.")],
    out: Annotated[Path, typer.Option(help="Picture to write (.png).")],
    name: Annotated[
        list[str] | None, typer.Option(help="A network as shown: file=name. Again for more.")
    ] = None,
) -> None:
    """Draws CKA heatmaps of probes side by side, light where stages are alike."""
    check_outputs({"--out": out})
    figures: Any = require("matplotlib.figure", extra="report")
    sides = [_sides(panel) for panel in panels]
    shown = _names(name or [], sides)
    figure = figures.Figure(figsize=(3.6 * len(panels) + 0.6, 3.7), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for each, (record, *pair) in zip(axes, sides, strict=True):
        files = [record["models"][number]["name"] for number in pair]
        titles = [shown.get(file, file) for file in files]
        stages, matrix = between(record["cka"], *pair)
        picture = paint_heatmap(
            each, stages, matrix, titles, most=_TICKS, size=6, colours=("black", _HEAD)
        )
    figure.colorbar(picture, ax=list(axes), label="CKA", shrink=0.8)
    buffer = io.BytesIO()
    with lacking_letters():
        figure.savefig(buffer, dpi=110, format="png")
    write(out, buffer.getvalue())


def _names(given: list[str], sides: list[tuple[dict[str, Any], int, int]]) -> dict[str, str]:
    """Returns what to call networks, by their names in the records."""
    known = {record["models"][number]["name"] for record, *pair in sides for number in pair}
    pairs = [text.rpartition("=") for text in given]
    for text, (file, _, called) in zip(given, pairs, strict=True):
        if file not in known or not called:
            raise UsageError(
                f"--name: expected NETWORK=NAME of {', '.join(sorted(known))}; found {text!r}"
            )
    return {file: called for file, _, called in pairs}


def _sides(panel: str) -> tuple[dict[str, Any], int, int]:
    file, _, pair = panel.partition(":")
    try:
        record = json.loads(Path(file).read_text(encoding="utf-8"))
        last = len(record["models"]) - 1
        if record["cka"] is None:
            raise KeyError("cka")
        first, second = (int(side) for side in pair.split(",")) if pair else (0, last)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{panel}: expected FILE or FILE:A,B, the record of a probe with CKA and two numbers "
            f"of its networks from 0; found {in_one_line(error)}"
        ) from error
    if not 0 <= min(first, second) <= max(first, second) <= last:
        raise UsageError(f"{panel}: expected numbers of networks from 0 to {last}")
    return record, first, second


if __name__ == "__main__":
    run_command(main)
