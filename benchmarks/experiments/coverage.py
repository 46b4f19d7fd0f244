"""Checks every family with every kind of head through the whole pipeline; prints one table.

``python -m lgvit_edge.benchmarks.experiments.coverage`` makes a model of each with random weights,
norms and statistics included. It compares its deployed form and its exported graphs on ONNX Runtime
(and OpenVINO, if installed) with ``LGViT.exit_logits``. TensorRT-RTX compiles the graphs in float32
and float16, which needs no GPU. Differences beyond the tolerance and graphs that do not compile are
listed, and the exit status is 1.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from lgvit_edge._support.terminal import console, progress_bar, say, table
from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.architecture.heads import head_choices
from lgvit_edge.architecture.placement import default_heads
from lgvit_edge.architecture.published import architecture
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, run_command
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.errors import LGViTEdgeError, MissingDependency
from lgvit_edge.export.bundle import ExportOptions, export_bundle
from lgvit_edge.export.checks import TOLERANCE, sample_images
from lgvit_edge.export.tensorrt.build import build_engines
from lgvit_edge.machine.openvino import shared_core
from lgvit_edge.model import LGViT, cut
from lgvit_edge.model.randomised import randomised
from lgvit_edge.policies.scores import difference

ARCHITECTURES = ("vit-tiny", "deit-tiny-distilled", "swin-tiny", "swinv2-tiny")
COLUMNS = ("PyTorch", "ONNX Runtime", "OpenVINO", "RTX fp32", "ONNX Runtime fp16", "RTX fp16")
ABSENT = "not installed"
Cell = float | str  # a difference, or what happened


@dataclass(frozen=True)
class Row:
    """The results of one family with one kind of head."""

    family: str
    heads: str
    cells: dict[str, Cell]  # by column: the largest difference in any exit's logits
    failed: tuple[str, ...]  # columns


def cover(configs: Sequence[LGViTConfig], work: Path) -> Iterator[Row]:
    """Yields a row per configuration that is put through the pipeline, in an empty folder."""
    for config in configs:
        model = randomised(LGViT(config))
        single, half = work / "fp32", work / "fp16"
        results: tuple[Cell, ...] = (
            _deployed(model),
            _tried(_exported, model, single, "fp32"),
            _tried(_openvino, single),
            _tried(_compiled, single),
            _tried(_exported, model, half, "fp16"),
            _tried(_compiled, half),
        )
        cells = dict(zip(COLUMNS, results, strict=True))
        failed = tuple(name for name in COLUMNS if not _good(name, cells[name]))
        heads = "+".join(sorted({exit.head for exit in config.exits}))
        yield Row(config.family, heads, cells, failed)


def _good(name: str, cell: Cell) -> bool:
    if isinstance(cell, float):
        return cell <= TOLERANCE["fp16" if name.endswith("fp16") else "fp32"]
    return cell == ABSENT or (name.startswith("RTX") and cell.endswith("built"))


def _tried(step: Callable[..., Cell], *arguments: Any) -> Cell:
    try:
        return step(*arguments)
    except MissingDependency:
        return ABSENT
    except LGViTEdgeError as error:
        return f"failed: {error}"


def _deployed(model: LGViT) -> float:
    frames, pixels = sample_images(model.config, "uint8")
    hidden: Any = torch.from_numpy(frames)
    logits = []
    with torch.no_grad():
        expected = model.exit_logits(pixels).numpy()
        for segment in cut(model):
            output = segment.module(hidden)
            hidden, answer = output if isinstance(output, tuple) else (None, output)
            logits.append(answer.numpy())
    return float(difference(np.stack(logits, axis=1), expected))


def _exported(model: LGViT, out: Path, precision: str) -> float:
    options = ExportOptions(target="rtx", precision=precision)
    return max(export_bundle(model, out, options).parity.max_difference)


def _compiled(out: Path) -> str:
    return f"{len(build_engines(out).build.engines)} built"


def _openvino(out: Path) -> float:
    """Runs a float32 bundle on OpenVINO's CPU plugin; returns the difference from its samples."""
    bundle, options = open_bundle(out), {"INFERENCE_PRECISION_HINT": "f32"}
    graphs = [bundle.path(segment.spec.graph) for segment in bundle.manifest.segments]
    chain = [shared_core().compile_model(graph, "CPU", options) for graph in graphs]
    with np.load(bundle.path(bundle.manifest.parity.samples)) as samples:
        pairs = list(zip(samples["images"], samples["logits"], strict=True))
    worst = 0.0
    for image, expected in pairs:
        hidden: Any = image[None]
        for compiled, logits in zip(chain, expected, strict=True):
            *rest, answer = compiled([hidden]).to_tuple()
            hidden = rest[0] if rest else None
            worst = max(worst, float(difference(answer, logits[None])))
    return worst


def published() -> list[LGViTConfig]:
    """Returns each family's smallest published backbone with two exits of each kind of head."""
    blocks = [4, 9]  # in a Swin the first exit reads tokens before a patch merging
    return [
        plain.replace(exits=default_heads(blocks, heads=heads, family=plain.family))
        for plain in map(architecture, ARCHITECTURES)
        for heads in head_choices()
    ]


def markdown(rows: Sequence[Row]) -> str:
    """Returns the table in Markdown, as in the results."""
    lines = ["| family | heads | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for row in rows:
        marks = [" **failed**" if name in row.failed else "" for name in COLUMNS]
        cells = [_words(row.cells[name]) + mark for name, mark in zip(COLUMNS, marks, strict=True)]
        lines.append(f"| {' | '.join([row.family, row.heads, *cells])} |")
    return "\n".join(lines) + "\n"


def _words(cell: Cell) -> str:
    return f"{cell:.1e}" if isinstance(cell, float) else cell


def main(
    out: Annotated[Path | None, typer.Option(help="Also write the table to this .md file.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Exports and builds every family with every kind of head, and prints a table."""
    record, configs, rows = Record(json_file), published(), list[Row]()
    with tempfile.TemporaryDirectory() as work, progress_bar("covering") as progress:
        progress(0, len(configs))
        for row in cover(configs, Path(work)):
            rows.append(row)
            progress(len(rows), len(configs), f"{row.family} {row.heads}")
    output = table("family", "heads", numbers=COLUMNS)
    for row in rows:
        output.add_row(row.family, row.heads, *(_words(row.cells[name]) for name in COLUMNS))
    console.print(output)
    if out is not None:
        out.write_text(markdown(rows), encoding="utf-8")
    record.write(rows=[vars(row) for row in rows])
    bad = [f"{row.family} {row.heads}: {name}" for row in rows for name in row.failed]
    if bad:
        say("failed: " + "; ".join(bad))
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
