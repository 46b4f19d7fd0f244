"""Draws a record of ``rivals`` as a bar chart, the picture of the README.

``python -m lgvit_edge.benchmarks.experiments.figure rivals.json --model ViT-B/16 --out speed.svg``
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any
from xml.sax.saxutils import escape

import typer

from lgvit_edge._support.outputs import write
from lgvit_edge.benchmarks.experiments.frame import run_command
from lgvit_edge.cli.options import check_outputs

_TITLES = {
    "chain": "early-exit chain",
    "If graph": "one graph with If",
    "eager": "eager, with exits",
    "compiled": "compiled, with exits",
    "baseline": "without exits",
}
_WIDTH, _LEFT, _TOP, _ROW = 880, 260, 74, 34
_FONT = "Helvetica, Arial, sans-serif"


def draw(record: dict[str, Any], model: str) -> str:
    """Returns the mean time per frame of each way to run the model, as an SVG.

    The record is what ``rivals --json`` wrote; it does not hold the name of the model.
    """
    rows = sorted(record["rows"], key=lambda row: row["mean_ms"])
    longest = max(row["mean_ms"] for row in rows)
    environment = record["env"]
    machine = f"{environment['threads']} threads of an {environment['cpu']}"
    height = _TOP + _ROW * len(rows) + 16
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'font-family="{_FONT}" font-size="14" role="img" '
        'aria-label="Mean milliseconds per frame of each way to run the model">',
        # A white background, to be readable on dark pages too.
        f'<rect x="1" y="1" width="{_WIDTH - 2}" height="{height - 2}" rx="10" '
        'fill="#ffffff" stroke="#b0bec5"/>',
        '<text x="24" y="32" font-weight="bold" fill="#102027">'
        f"{escape(model)} with {len(record['mix']) - 1} exits: mean milliseconds per frame, "
        "less is better</text>",
        f'<text x="24" y="54" font-size="12" fill="#607d8b">{escape(machine)}, batch 1, float32 '
        "unless said; exits forced in fixed shares, all measured in turn</text>",
    ]
    for number, row in enumerate(rows):
        y = _TOP + _ROW * number
        what, _, where = row["name"].partition(", ")
        name = f"{_TITLES[what]}, {where}"
        bar = (_WIDTH - _LEFT - 90) * row["mean_ms"] / longest
        colour = {"chain": "#2e7d32", "baseline": "#b0bec5"}.get(what, "#90a4ae")
        lines += [
            f'<text x="{_LEFT - 12}" y="{y + 17}" text-anchor="end" fill="#102027">'
            f"{escape(name)}</text>",
            f'<rect x="{_LEFT}" y="{y}" width="{bar:.1f}" height="24" rx="3" fill="{colour}"/>',
            f'<text x="{_LEFT + bar + 8:.1f}" y="{y + 17}" fill="#102027">'
            f"{row['mean_ms']:.1f}</text>",
        ]
    return "\n".join([*lines, "</svg>", ""])


def main(
    record: Annotated[Path, typer.Argument(help="Record that `rivals --json` wrote.")],
    model: Annotated[str, typer.Option(help="Name of the model, for the title.")],
    out: Annotated[Path, typer.Option(help="File to write (.svg).")],
) -> None:
    """Draws the mean time per frame of each way to run the model."""
    check_outputs({"--out": out})
    picture = draw(json.loads(record.read_text(encoding="utf-8")), model)
    write(out, picture)


if __name__ == "__main__":
    run_command(main)
