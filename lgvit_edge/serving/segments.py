"""A model of Triton's own TensorRT or ONNX Runtime backend for each segment of a bundle."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lgvit_edge._support.optional import require
from lgvit_edge.bundle.builds import Build, find_builds, graphs_of, read_engine
from lgvit_edge.bundle.directory import Bundle
from lgvit_edge.bundle.manifest import GraphSpec, TensorSpec
from lgvit_edge.errors import BundleError, UsageError
from lgvit_edge.policies import Policy
from lgvit_edge.runtime.backends.registry import AUTO
from lgvit_edge.serving.options import RunParameters
from lgvit_edge.serving.pbtxt import Word

TYPES = {"uint8": "TYPE_UINT8", "float16": "TYPE_FP16", "float32": "TYPE_FP32"}
_FILES = {"onnxruntime": "model.onnx", "tensorrt": "model.plan"}  # by backend, as Triton names them
_WEIGHTS = "weights.bin"


def graphs_to_serve(bundle: Bundle, policies: Iterable[Policy]) -> dict[str, GraphSpec]:
    """Return the graphs that some policy runs: all segments, and the baseline if one never stops.

    A session runs the baseline in place of the chain where no image can stop early.
    """
    exits = len(bundle.manifest.segments) - 1
    graphs = graphs_of(bundle)
    if exits == 0 or all(policy.stops_early(exits) for policy in policies):
        del graphs["baseline"]
    return graphs


def backend_for(run: RunParameters) -> str:
    """Return which of Triton's backends runs the segments.

    Raises:
        UsageError: it is none of them, or an option is not for it.
    """
    backend = "onnxruntime" if run.backend in (None, AUTO) else str(run.backend)
    if backend not in _FILES:
        raise UsageError(
            f"Triton's own backends for segments are {' and '.join(_FILES)}, found {backend!r}; "
            "take one of them, or the layout session"
        )
    if run.precision is not None:
        raise UsageError(
            f"in the layout segments Triton computes in the precision of the graphs, found "
            f"precision {run.precision}; export with --precision, or take the layout session"
        )
    return backend


def config(
    name: str, graph: GraphSpec, batch: tuple[int, int, int], backend: str, run: RunParameters
) -> dict[str, Any]:
    """Return the configuration of the model that is one graph."""
    _, usual, most = batch
    fixed = most == 1  # then the graph's own shapes have the batch, and Triton adds none
    image = graph.inputs[0]
    warm = {
        "data_type": Word(TYPES[image.dtype]),
        "dims": _dims(image, fixed),
        "random_data": True,
    }
    written: dict[str, Any] = {
        "name": name,
        "backend": backend,
        "default_model_filename": _FILES[backend],
        "max_batch_size": 0 if fixed else most,
        "input": [_tensor(tensor, fixed) for tensor in graph.inputs],
        "output": [_tensor(tensor, fixed) for tensor in graph.outputs],
        "instance_group": [{"count": 1, **_device(run.device)}],
        "model_warmup": [
            {
                "name": f"batch of {size}",
                "batch_size": 0 if fixed else size,
                "inputs": {"key": image.name, "value": warm},
            }
            for size in sorted({1, most})
        ],
    }
    if not fixed:
        # Of several instances of the model that calls, which would wait for each other otherwise.
        written["dynamic_batching"] = {"preferred_batch_size": [usual]} if usual > 1 else {}
    if run.threads is not None:
        written["parameters"] = [
            {"key": "intra_op_thread_count", "value": {"string_value": str(run.threads)}}
        ]
    return written


def write_graph(bundle: Bundle, key: str, graph: GraphSpec, backend: str, folder: Path) -> None:
    """Write one graph as a model's file, with the weights that it reads and no others.

    Raises:
        BundleError: the graph, or its engine, is damaged; or there is not one build of engines.
        MissingDependency: the package onnx is not installed.
    """
    target = folder / _FILES[backend]
    if backend == "tensorrt":
        place, build = the_build(bundle)
        target.write_bytes(read_engine(place, build, key, graph))
        return
    onnx = require("onnx", extra="export")
    model = onnx.load(bundle.path(graph.graph))
    onnx.save(model, target, save_as_external_data=True, location=_WEIGHTS, size_threshold=1024)


def the_build(bundle: Bundle) -> tuple[Path, Build]:
    """Return the engines of TensorRT in a bundle.

    Raises:
        BundleError: there are none, or several builds, or they were compiled from other graphs.
    """
    command = f"lgvit-edge build {bundle.root}"
    found = find_builds(bundle.root)
    for _, build in found:
        if isinstance(build, BundleError):
            raise build
    builds = [(f, b) for f, b in found if isinstance(b, Build) and b.library == "tensorrt"]
    if not builds:
        others = "; those of TensorRT-RTX are not for Triton" if found else ""
        raise BundleError(f"{bundle.root} has no engines of TensorRT{others}; run: {command}")
    if len(builds) > 1:
        names = ", ".join(folder.name for folder, _ in builds)
        raise BundleError(
            f"{bundle.root} has engines of several builds: {names}; expected those of the GPU that "
            "serves: remove the folders of the others from a copy of the bundle"
        )
    ((folder, build),) = builds
    if (fault := build.fault(bundle)) is not None:
        raise BundleError(f"the engines in {folder} are {fault}; run: {command}")
    return folder, build


def _tensor(tensor: TensorSpec, fixed: bool) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "data_type": Word(TYPES[tensor.dtype]),
        "dims": _dims(tensor, fixed),
    }


def _dims(tensor: TensorSpec, fixed: bool) -> list[int]:
    return list(tensor.shape if fixed else tensor.shape[1:])


def _device(device: str | None) -> dict[str, Any]:
    if device is not None and not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", device):
        raise UsageError(f"Triton's own backends run on cpu, cuda or cuda:N, found {device!r}")
    kind, _, number = (device or "").partition(":")
    if kind == "cuda":
        return {"kind": Word("KIND_GPU"), "gpus": [int(number or 0)]}
    return {"kind": Word("KIND_CPU" if kind == "cpu" else "KIND_AUTO")}
