"""Times int8 against float32 and bfloat16 on a CPU, and says whether answers stay.

``python -m lgvit_edge.benchmarks.experiments.int8 --arch vit-tiny,vit-small,vit-base`` quantizes
networks without exits with ONNX Runtime's own quantizers: all linear layers or the MLPs alone,
with scales from images or computed as it runs. They run in turn on ONNX Runtime and OpenVINO, with
random weights, which take the time that trained ones take. ``--ckpt --data`` times a trained model
instead, and compares its answers with float32's. Needs the export extra.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from lgvit_edge._support.optional import require
from lgvit_edge._support.terminal import console, say
from lgvit_edge.architecture.published import architecture
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, choose_images, run_command
from lgvit_edge.benchmarks.experiments.if_graph import BoundGraph, Graph, VinoGraph
from lgvit_edge.benchmarks.experiments.sizes import in_turn
from lgvit_edge.benchmarks.measure import random_frames
from lgvit_edge.benchmarks.report.terminal import table_of
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.bundle.layout import BASELINE
from lgvit_edge.errors import UsageError
from lgvit_edge.export import ExportOptions, export_bundle
from lgvit_edge.images.preprocess import load_rgb, network_input
from lgvit_edge.machine.cpu import available_cores
from lgvit_edge.model import LGViT, load_checkpoint
from lgvit_edge.model.randomised import randomised
from lgvit_edge.runtime.backends.openvino import available_precisions

_CALIBRATION = 64  # images
_CELLS = "{model} | {way} | {ms:.2f} | {time:.3f} | {p25:.3f} | {p75:.3f} | {agree} | {top1}"
_COLUMNS = ("ms", "of float32", "p25", "p75", "same answer", "top-1")
Images = NDArray[np.uint8]  # [n, 1, H, W, 3]


def main(
    arch: Annotated[str | None, typer.Option(help="Architectures, with random weights.")] = None,
    ckpt: Annotated[Path | None, typer.Option(help="Or a trained model.")] = None,
    data: Annotated[Path | None, typer.Option(help="Images by class, with --ckpt.")] = None,
    calib: Annotated[Path | None, typer.Option(help="Other images, for scales.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Number of images of --data.")] = 1000,
    rounds: Annotated[int, typer.Option(min=4, help="Measurements of each way.")] = 60,
    json_file: JsonFile = None,
) -> None:
    """Times networks in int8 of several kinds beside float32 and bfloat16."""
    record, threads = Record(json_file), available_cores()
    if (arch is None) == (ckpt is None) or len({ckpt is None, data is None, calib is None}) > 1:
        raise UsageError("expected --arch NAMES, or --ckpt MODEL --data DIR --calib DIR")
    names = arch.split(",") if arch else []
    models = {name: randomised(LGViT(architecture(name))) for name in names}
    if ckpt is not None:
        models[ckpt.stem] = load_checkpoint(ckpt)
    rows: list[dict[str, Any]] = []
    for name, model in models.items():
        say(f"quantizing {name}")
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "bundle"
            export_bundle(model.with_exits([]), root, ExportOptions())
            manifest = open_bundle(root).manifest
            image = np.stack(random_frames(manifest, 1))
            scales = image[None]
            if calib is not None:
                scales = _read(choose_images(calib, manifest, _CALIBRATION), manifest)[0]
            graphs = dict(_ways(root / BASELINE, scales, image, threads))
            times = in_turn(list(graphs.values()), rounds)
            found = [_times(way, times[i], times[0]) for i, way in enumerate(graphs)]
            if data is not None:
                pixels, labels = _read(choose_images(data, manifest, samples), manifest)
                _compare(found, list(graphs.values()), image, pixels, labels)
            rows += [{"model": name, **row} for row in found]
            graphs.clear()
    texts = [
        row | {key: f"{row[key]:.1%}" if key in row else "" for key in ("agree", "top1")}
        for row in rows
    ]
    console.print(table_of(texts, _CELLS, "model", "way", numbers=_COLUMNS))
    record.env |= {"threads": threads}
    record.write(rounds=rounds, samples=samples if data else None, rows=rows)


def _ways(
    graph: Path, scales: Images, image: NDArray[np.uint8], threads: int
) -> Iterator[tuple[str, Graph]]:
    """Yields ways to compute a network, float32 on ONNX Runtime first; all read ``image``."""
    asked: dict[str, dict[str, Any]] = {
        "int8 MLPs": {"images": scales, "only": (".fc1/", ".fc2/")},
        "int8": {"images": scales},
        "int8, scales as it runs": {},
    }
    # In another process: the quantizer's own sessions do not share the pool of this one's.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as beside:
        made = {name: beside.submit(quantized, graph, **how) for name, how in asked.items()}
        files = {name: future.result() for name, future in made.items()}
    yield "float32, ONNX Runtime", BoundGraph(graph, [image], threads)
    for name, file in files.items():
        yield f"{name}, ONNX Runtime", BoundGraph(file, [image], threads)
    for precision in available_precisions("cpu"):
        words = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[precision]
        yield f"{words}, OpenVINO", VinoGraph(graph, [image], threads, precision)
        for name in ("int8 MLPs", "int8"):  # it has no kernels for the third
            quick = VinoGraph(files[name], [image], threads, precision)
            yield f"{name} in {words}, OpenVINO", quick


def quantized(graph: Path, images: Images | None = None, *, only: Sequence[str] = ()) -> Path:
    """Returns a graph beside ``graph`` whose linear layers are in int8, weights by channel.

    Scales of activations come from images, or without any are computed for each image as it runs.
    ``only`` are parts of the names of the nodes that become int8; default all with weights.
    """
    onnx = require("onnx", extra="export")
    tools = require("onnxruntime.quantization", extra="cpu")
    proto = onnx.load(graph, load_external_data=False)
    # Those of the last block's attention are one matrix per head, for which there is no kernel.
    weights = {tensor.name for tensor in proto.graph.initializer if len(tensor.dims) == 2}
    nodes = [
        node.name
        for node in proto.graph.node
        if node.op_type in ("MatMul", "Gemm")
        and not weights.isdisjoint(node.input)
        and (not only or any(part in node.name for part in only))
    ]
    name = "dynamic" if images is None else "mlps" if only else "static"
    path = graph.with_name(f"{name}.onnx")
    logging.disable(logging.WARNING)  # it would have graphs rewritten by other tools first
    options = {"nodes_to_quantize": nodes, "per_channel": True, "use_external_data_format": True}
    if images is None:
        tools.quantize_dynamic(str(graph), str(path), weight_type=tools.QuantType.QInt8, **options)
        return path
    tools.quantize_static(
        str(graph),
        str(path),
        _Reader(proto.graph.input[0].name, images),
        quant_format=tools.QuantFormat.QDQ,
        activation_type=tools.QuantType.QUInt8,
        weight_type=tools.QuantType.QInt8,
        calibrate_method=tools.CalibrationMethod.MinMax,
        **options,
    )
    return path


class _Reader:
    """Gives images one by one, as ONNX Runtime's ``CalibrationDataReader``."""

    def __init__(self, name: str, images: Images) -> None:
        self._each = iter([{name: image} for image in images])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._each, None)


def _read(images: Sequence[Any], manifest: Any) -> tuple[Images, NDArray[np.int64]]:
    """Returns network inputs and classes of images."""
    pixels = [network_input([load_rgb(i.path)], *manifest.views[0]) for i in images]
    return np.stack(pixels), np.array([i.class_index for i in images], np.int64)


def _times(way: str, times: NDArray[np.float64], base: NDArray[np.float64]) -> dict[str, Any]:
    low, middle, high = np.percentile(times / base, [25, 50, 75]).tolist()
    return {
        "way": way,
        "ms": float(np.median(times)),
        **{"time": middle, "p25": low, "p75": high},
        "raw_ms": np.round(times, 4).tolist(),
    }


def _compare(
    rows: list[dict[str, Any]],
    graphs: Sequence[Graph],
    image: NDArray[np.uint8],
    pixels: Images,
    labels: NDArray[np.int64],
) -> None:
    """Adds to each row the share of images answered as float32 does, and top-1."""
    first: NDArray[np.int64] | None = None
    for row, graph in zip(rows, graphs, strict=True):
        answers = np.empty(len(pixels), np.int64)
        for i, each in enumerate(pixels):
            image[...] = each
            answers[i] = graph()
        first = answers if first is None else first
        row |= {
            "agree": float((answers == first).mean()),
            "top1": float((answers == labels).mean()),
        }


if __name__ == "__main__":
    run_command(main)
