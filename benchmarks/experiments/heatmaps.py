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
from lgvit_edge.cli.options import check_outputs
from lgvit_edge.errors import UsageError, in_one_line
from lgvit_edge.probing.plots import COLOURS, between, is_head

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
    shown = {file: called for file, _, called in (pair.rpartition("=") for pair in name or ())}
    figures: Any = require("matplotlib.figure", extra="report")
    figure = figures.Figure(figsize=(3.6 * len(panels) + 0.6, 3.7), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for each, panel in zip(axes, panels, strict=True):
        picture = _paint(each, *_sides(panel), shown)
    figure.colorbar(picture, ax=list(axes), label="CKA", shrink=0.8)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    write(out, buffer.getvalue())


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


def _paint(
    axes: Any, record: dict[str, Any], first: int, second: int, names: dict[str, str]
) -> Any:
    sides, matrix = between(record["cka"], first, second)
    picture = axes.imshow(
        matrix, cmap=COLOURS, vmin=0, vmax=1, origin="lower", aspect="auto", interpolation="none"
    )
    for axis, stages in ((axes.yaxis, sides[0]), (axes.xaxis, sides[1])):
        places = range(0, len(stages), -(-len(stages) // _TICKS))
        axis.set_ticks(places, [stages[place] for place in places])
        axis.set_tick_params(labelsize=6, rotation=90 * (axis is axes.xaxis))
        for label in axis.get_ticklabels():
            if is_head(label.get_text()):
                label.set_color(_HEAD)
    models = [record["models"][number]["name"] for number in (first, second)]
    titles = (names.get(model, model) for model in models)
    axes.set(ylabel=next(titles), xlabel=next(titles))
    return picture


if __name__ == "__main__":
    run_command(main)
