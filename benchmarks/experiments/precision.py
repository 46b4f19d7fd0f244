"""Measures what float32 inside half precision changes: of LayerNorms, and of matrix products' sums.

``python -m lgvit_edge.benchmarks.experiments.precision --ckpt model.pt --data DIR`` exports a model
in every way, in turn, compiles each by TensorRT-RTX, and compares logits and exits on real images
with float32. The comparison runs on ONNX Runtime's CPU backend, which sums in float32 whatever a
graph asks for: it shows what the casts change, and nothing of a GPU's kernels.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from lgvit_edge._support.optional import require
from lgvit_edge._support.terminal import console, note
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, run_command
from lgvit_edge.benchmarks.report.terminal import table_of
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.export import ExportOptions, build_engines, export_bundle
from lgvit_edge.export.checks import reference_logits
from lgvit_edge.images.labelled import evenly, unlabelled_images
from lgvit_edge.images.preprocess import load_rgb, network_input, to_float
from lgvit_edge.model import LGViT, load_checkpoint
from lgvit_edge.policies import Confidence
from lgvit_edge.runtime import Session

WAYS: dict[str, dict[str, Any]] = {
    "--keep-fp32 none": {"fp32_islands": ()},
    "the default, layernorm": {},
    "--fp32-accumulate": {"fp32_accumulate": True},
    "--keep-fp32 layernorm,softmax": {"fp32_islands": ("layernorm", "softmax")},
}
_THRESHOLDS = [0.5 + 0.05 * i for i in range(10)]
_CHUNK = 16


def main(
    ckpt: Annotated[Path, typer.Option(help="Trained checkpoint.")],
    data: Annotated[Path, typer.Option(help="Folder of images.")],
    samples: Annotated[int, typer.Option(min=1, help="Number of images.")] = 500,
    rounds: Annotated[int, typer.Option(min=1, help="Exports and builds of every way.")] = 2,
    json_file: JsonFile = None,
) -> None:
    """Compares half-precision exports with each other, and with float32 on real images."""
    record, model = Record(json_file), load_checkpoint(ckpt)
    frames = [load_rgb(path) for path in evenly(unlabelled_images(data, note), samples)]
    expected = float32_logits(model, frames)
    rows: dict[str, dict[str, Any]] = {way: {"way": way} for way in WAYS}
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for way, options in WAYS.items():
                out = Path(folder) / f"{number} {way}"
                began = time.perf_counter()
                export_bundle(model, out, ExportOptions(target="rtx", **options))
                exporting = time.perf_counter() - began
                built = build_engines(out).build.engines.values()
                seconds[way].append((exporting, sum(engine.seconds for engine in built)))
                if not number:
                    rows[way] |= sizes(out) | compared(out, frames, expected)
                    rows[way]["engines_mb"] = sum(engine.bytes for engine in built) / 1e6
    for way, row in rows.items():
        row["export_s"], row["build_s"] = map(statistics.median, zip(*seconds[way], strict=True))
    cells = (
        "{way} | {max_difference:.4f} | {mean_difference:.5f} | {other_exit:.2%} | {nodes} | "
        "{graphs_kb:.0f} | {weights_mb:.2f} | {export_s:.1f} | {build_s:.1f} | {engines_mb:.2f}"
    )
    sizes_of = ("nodes", "graphs (kB)", "weights (MB)", "export (s)", "build (s)", "engines (MB)")
    numbers = ("max", "mean", "other exit", *sizes_of)
    console.print(table_of(list(rows.values()), cells, "fp16", numbers=numbers))
    record.write(rounds=rounds, images=len(frames), ways=list(rows.values()), seconds=seconds)


def float32_logits(model: LGViT, frames: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Return PyTorch's logits at every exit, ``[n, M + 1, C] float32``."""
    spec, logits = model.config.preprocess, []
    for first in range(0, len(frames), _CHUNK):
        chunk = frames[first : first + _CHUNK]
        pixels = to_float(network_input(chunk, spec, model.config.image_size, "uint8"), spec)
        logits.append(reference_logits(model, torch.from_numpy(pixels)))
    return np.concatenate(logits)


def sizes(bundle: Path) -> dict[str, float]:
    """Return nodes and bytes of a bundle's graphs, and of its weights."""
    onnx, manifest = require("onnx", extra="export"), open_bundle(bundle).manifest
    graphs = [onnx.load(bundle / g.graph.file, load_external_data=False) for g in manifest.graphs]
    return {
        "nodes": sum(len(graph.graph.node) for graph in graphs),
        "graphs_kb": sum(g.graph.bytes for g in manifest.graphs) / 1e3,
        "weights_mb": sum(file.bytes for file in manifest.weights) / 1e6,
    }


def compared(
    bundle: Path, frames: list[NDArray[np.uint8]], expected: NDArray[np.float32]
) -> dict[str, float]:
    """Return how far logits are from float32's, and how many images leave at another exit.

    The latter is averaged over thresholds of confidence from 0.5 to 0.95.
    """
    with Session.open(bundle, backend="onnxruntime") as session:
        found = np.concatenate([session.exit_logits([frame]) for frame in frames])
    gap, moved = np.abs(found - expected), []
    for threshold in _THRESHOLDS:
        policy = Confidence(threshold)
        moved.append((policy.replay(found)[0] != policy.replay(expected)[0]).mean())
    return {
        "max_difference": float(gap.max()),
        "mean_difference": float(gap.mean()),
        "other_exit": float(np.mean(moved)),
    }


if __name__ == "__main__":
    run_command(main)
