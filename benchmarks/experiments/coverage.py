"""Checks every family and form of ViT with every kind of head through the whole pipeline.

``python -m lgvit_edge.benchmarks.experiments.coverage`` makes a model of each with random weights,
norms and statistics included. It compares its deployed form and its exported graphs on ONNX Runtime
(and OpenVINO, if installed) with ``LGViT.exit_logits``. TensorRT-RTX compiles the graphs in float32
and float16, which needs no GPU. Differences beyond the tolerance and graphs that do not compile are
listed, and the exit status is 1. ``--names`` compares every architecture that timm publishes with
timm's own, and lists those that agree.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from lgvit_edge._support.outputs import write
from lgvit_edge._support.terminal import console, progress_bar, say, table
from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.architecture.heads import head_choices
from lgvit_edge.architecture.placement import default_heads
from lgvit_edge.architecture.published import architecture
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, run_command
from lgvit_edge.benchmarks.experiments.published import TOLERANCE as LOGITS
from lgvit_edge.benchmarks.experiments.published import difference as logits_difference
from lgvit_edge.benchmarks.experiments.published import full_size, import_timm
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.cli.options import check_outputs
from lgvit_edge.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    LGViTEdgeError,
    MissingDependency,
)
from lgvit_edge.export.bundle import ExportOptions, export_bundle
from lgvit_edge.export.checks import TOLERANCE, sample_images
from lgvit_edge.export.tensorrt.build import build_engines
from lgvit_edge.machine.openvino import shared_core
from lgvit_edge.model import LGViT, cut
from lgvit_edge.model.checkpoints.timm_names import published_names
from lgvit_edge.model.randomised import randomised
from lgvit_edge.policies.scores import difference
from lgvit_edge.runtime.samples import read_samples

ARCHITECTURES = ("vit-tiny", "deit-tiny-distilled", "swin-tiny", "swinv2-tiny")
# Of timm, by form: a published architecture, and the side of the images. They are made as narrow as
# a ViT-Tiny.
FORMS = {
    "DeiT III": ("deit3_small_patch16_224", 224),
    "CLIP": ("vit_xsmall_patch16_clip_224", 224),
    "DINOv2": ("vit_small_patch14_reg4_dinov2", 224),
    "DINOv3": ("vit_small_patch16_dinov3", 256),
    "EVA-02": ("eva02_tiny_patch14_224", 224),
    "EVA-02 CLIP": ("eva02_base_patch16_clip_224", 224),
    "BEiT": ("beit_base_patch16_224", 224),
    "SigLIP": ("vit_base_patch16_siglip_224", 224),
    "MAE": ("vit_base_patch16_gap_224", 224),
}
TINY = {"hidden_size": 192, "num_blocks": 12, "num_heads": 3, "intermediate_size": 768}
BEGIN, END = "<!-- names -->", "<!-- end of names -->"
COLUMNS = ("PyTorch", "ONNX Runtime", "OpenVINO", "RTX fp32", "ONNX Runtime fp16", "RTX fp16")
ABSENT = "not installed"
Cell = float | str  # a difference, or what happened


@dataclass(frozen=True)
class Row:
    """The results of one family, or form of it, with one kind of head."""

    family: str
    heads: str
    cells: dict[str, Cell]  # by column: the largest difference in any exit's logits
    failed: tuple[str, ...]  # columns


def cover(configs: Sequence[tuple[str, LGViTConfig]], work: Path) -> Iterator[Row]:
    """Yields a row per configuration that is put through the pipeline, in an empty folder."""
    for label, config in configs:
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
        yield Row(label, heads, cells, failed)


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
    images, logits = read_samples(bundle)
    pairs = list(zip(images.of(0), logits, strict=True))
    worst = 0.0
    for image, expected in pairs:
        hidden: Any = image[None]
        for compiled, logits in zip(chain, expected, strict=True):
            *rest, answer = compiled([hidden]).to_tuple()
            hidden = rest[0] if rest else None
            worst = max(worst, float(difference(answer, logits[None])))
    return worst


def configurations(forms: Collection[str]) -> list[tuple[str, LGViTConfig]]:
    """Returns families' and forms' smallest backbones, with two exits of each kind of head.

    Raises:
        MissingDependency: timm, which builds the forms, is not installed.
    """
    blocks = [4, 9]  # in a Swin the first exit reads tokens before a patch merging
    plain = [(config.family, config) for config in map(architecture, ARCHITECTURES)]
    timm = import_timm() if set(forms) & FORMS.keys() else None
    for label, (name, size) in FORMS.items():
        if label in forms:
            config = full_size(timm, name)
            plain.append((label, config.replace(image_size=size, **TINY)))
    return [
        (label, config.replace(exits=default_heads(blocks, heads=heads, family=config.family)))
        for label, config in plain
        if label in forms
        for heads in head_choices()
    ]


def verified_names(work: Path) -> Iterator[tuple[str, int, int]]:
    """Yields each name that timm publishes and we compute alike, its number and how many there are.

    ``work`` is an empty folder. What is not read yields an empty name.

    Raises:
        MissingDependency: timm is not installed.
    """
    timm, names = import_timm(), published_names()
    for number, name in enumerate(names, 1):
        try:
            full_size(timm, name)
            alike = logits_difference(timm, name, work / str(number)) <= LOGITS
        except CheckpointError:
            alike = False
        yield name if alike else "", number, len(names)


def listed(names: Sequence[str]) -> str:
    """Returns names in Markdown, one paragraph for those that begin alike."""
    groups = itertools.groupby(names, key=lambda name: name.split("_")[0])
    return "\n\n".join(", ".join(f"`{name}`" for name in group) for _, group in groups)


def write_names(page: Path, names: Sequence[str]) -> None:
    """Writes the list between the marks of a page."""
    text = page.read_text(encoding="utf-8")
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise DataError(f"{page}: expected the lines {BEGIN} and {END}, found none")
    write(page, f"{before}{BEGIN}\n\n{listed(names)}\n\n{END}{after}")


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
    only: Annotated[
        list[str] | None, typer.Option(help="Only this family or form; may be repeated.")
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(help="Instead, list timm's names that agree between the marks of this page."),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Exports and builds every family and form with every kind of head, and prints a table."""
    check_outputs({"--names": names, "--out": out})
    if names is not None:
        with tempfile.TemporaryDirectory() as work, progress_bar("comparing") as progress:
            agreed = []
            for name, number, count in verified_names(Path(work)):
                agreed += [name] if name else []
                progress(number, count, name)
        write_names(names, agreed)
        say(f"{len(agreed)} of {count} architectures of timm agree; listed in {names}")
        return
    known = [*(config.family for config in map(architecture, ARCHITECTURES)), *FORMS]
    if wrong := set(only or ()) - set(known):
        raise ConfigError(f"--only must be one of {', '.join(known)}, found {min(wrong)}")
    record, configs, rows = Record(json_file), configurations(only or known), list[Row]()
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
        write(out, markdown(rows))
    record.write(rows=[vars(row) for row in rows])
    bad = [f"{row.family} {row.heads}: {name}" for row in rows for name in row.failed]
    if bad:
        say("failed: " + "; ".join(bad))
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
