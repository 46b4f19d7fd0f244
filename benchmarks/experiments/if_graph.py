"""Builds a whole early-exit chain as one ONNX graph with nested ``If`` nodes, as a rival.

The thresholds ``[M] float32`` are an input of the graph. Where the largest softmax of exit m is
above the m-th threshold, the ``If`` returns its logits. Otherwise it runs its other branch: the
next segment and the ``If`` in it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.optional import require
from lgvit_edge.bundle.directory import Bundle
from lgvit_edge.bundle.layout import WEIGHTS
from lgvit_edge.machine.openvino import shared_core
from lgvit_edge.runtime.backends.openvino import settings_for
from lgvit_edge.runtime.backends.ort_pool import join_pool, open_session


class Graph(Protocol):
    """A graph that is loaded, with inputs bound beforehand."""

    @property
    def outputs(self) -> list[NDArray[np.float32]]:
        """The values of the last run, ``[1, ...] float32``."""

    def __call__(self) -> int:
        """Runs the graph; returns the class that the last output says."""


class BoundGraph:
    """Runs a graph on ONNX Runtime for one image, with inputs and outputs bound beforehand."""

    def __init__(self, path: Path, inputs: list[NDArray[Any]], threads: int) -> None:
        """Load the graph; each run reads what the arrays in ``inputs`` then hold."""
        ort = require("onnxruntime", extra="cpu")
        size = join_pool(ort, threads)
        self._session, _ = open_session(
            ort, str(path), size, shared=True, providers=["CPUExecutionProvider"]
        )
        self._inputs = inputs  # the binding has only their addresses
        nodes = self._session.get_outputs()
        # The values of the last run, ``[1, ...] float32``.
        self.outputs = [np.zeros((1, *node.shape[1:]), np.float32) for node in nodes]
        self._binding = self._session.io_binding()
        for node, array in zip(self._session.get_inputs(), inputs, strict=True):
            place = (array.dtype, array.shape, array.ctypes.data)
            self._binding.bind_input(node.name, "cpu", 0, *place)
        for node, array in zip(nodes, self.outputs, strict=True):
            place = (array.dtype, array.shape, array.ctypes.data)
            self._binding.bind_output(node.name, "cpu", 0, *place)

    def __call__(self) -> int:
        """Runs the graph; returns the class that the last output says."""
        self._session.run_with_iobinding(self._binding)
        return int(self.outputs[-1].argmax())


class VinoGraph:
    """Runs a graph on OpenVINO for one image, as ``BoundGraph`` does on ONNX Runtime."""

    def __init__(
        self, path: Path, inputs: list[NDArray[Any]], threads: int, precision: str
    ) -> None:
        """Compile the graph with the settings of our own chain; ``precision`` as there."""
        openvino = require("openvino", extra="openvino")
        settings = settings_for("CPU", precision, threads)
        self._model = shared_core().compile_model(str(path), "CPU", settings)
        self._request = self._model.create_infer_request()
        self._inputs = inputs  # the tensors lie on them
        for place, array in enumerate(inputs):
            self._request.set_input_tensor(place, openvino.Tensor(array, shared_memory=True))

    @property
    def outputs(self) -> list[NDArray[np.float32]]:
        """The values of the last run, ``[1, ...] float32``."""
        return [tensor.data for tensor in self._request.output_tensors]

    def __call__(self) -> int:
        """Runs the graph; returns the class that the last output says."""
        self._request.infer(share_outputs=True)
        return int(self.outputs[-1].argmax())


class IfGraph:
    """Runs the graph up to a given exit."""

    def __init__(
        self, path: Path, exits: int, load: Callable[[Path, list[NDArray[Any]]], Graph], image: Any
    ) -> None:
        """Load what ``build`` wrote, with ``exits`` before the final one, for ``[1, H, W, 3]``."""
        self._thresholds = np.zeros(exits, np.float32)
        self._graph = load(path, [image, self._thresholds])

    @property
    def logits(self) -> NDArray[np.float32]:
        """The logits of the last run, ``[1, C] float32``."""
        return self._graph.outputs[0]

    def __call__(self, exit: int) -> object:
        """Runs the graph up to ``exit``, 1-based."""
        self._thresholds[:] = 2.0
        self._thresholds[exit - 1 : exit] = -1.0
        return self._graph()


def prefixed(bundle: Bundle, index: int) -> Any:
    """Returns a segment's model, with ``s<index>_`` before all names in it."""
    onnx, compose = require("onnx", extra="export"), require("onnx.compose", extra="export")
    path = bundle.path(bundle.manifest.segments[index].spec.graph)
    return compose.add_prefix(onnx.load(path, load_external_data=False), f"s{index}_")


def save_like(model: Any, graph: Any, bundle: Bundle, path: Path) -> Path:
    """Writes a graph in the versions of ``model``, and the weights beside it."""
    onnx = require("onnx", extra="export")
    weights = path.with_name(Path(WEIGHTS).name)
    if not weights.exists():  # a copy, because ONNX Runtime refuses hard links
        shutil.copyfile(bundle.root / WEIGHTS, weights)
    versions = {"opset_imports": model.opset_import, "ir_version": model.ir_version}
    onnx.save(onnx.helper.make_model(graph, **versions), path)
    return path


def build(bundle: Bundle, folder: Path) -> Path:
    """Writes the graph and its weights; returns the graph's path."""
    onnx = require("onnx", extra="export")
    specs = [segment.spec for segment in bundle.manifest.segments]
    inner: Any = None
    for index, spec in reversed(list(enumerate(specs))):
        model = prefixed(bundle, index)
        graph, source = model.graph, f"s{index}_{spec.inputs[0].name}"
        if index:  # reads the hidden state of the graph around it
            _rename(graph, source, f"s{index - 1}_{specs[index - 1].outputs[0].name}")
            del graph.input[:]
        else:
            _rename(graph, source, "image")
            graph.input[0].name = "image"
        inner = _with_exit(onnx, graph, index, f"s{index}_{spec.logits.name}", inner)
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    inner.input.append(helper.make_tensor_value_info("thresholds", kind, [len(specs) - 1]))
    return save_like(model, inner, bundle, folder / "if_graph.onnx")


def _with_exit(onnx: Any, graph: Any, index: int, logits: str, rest: Any) -> Any:
    """Returns the segment's graph with one output: its own logits, or those of ``rest``."""
    helper, proto = onnx.helper, onnx.TensorProto
    shape = [d.dim_value for d in graph.output[-1].type.tensor_type.shape.dim]
    del graph.output[:]
    name = f"answer_{index}" if index else "logits"
    answer = helper.make_tensor_value_info(name, proto.FLOAT, shape)
    if rest is None:  # the final classifier
        graph.node.append(helper.make_node("Identity", [logits], [name]))
        graph.output.append(answer)
        return graph
    p = f"exit_{index}_"
    for key, values in (("place", [index]), ("axes", [1])):
        graph.initializer.append(
            onnx.numpy_helper.from_array(np.array(values, np.int64), f"{p}{key}")
        )
    own_logits = helper.make_graph(
        [helper.make_node("Identity", [logits], [f"{p}taken"])],
        f"{p}leaves",
        [],
        [helper.make_tensor_value_info(f"{p}taken", proto.FLOAT, shape)],
    )
    graph.node.extend(
        [
            helper.make_node("Softmax", [logits], [f"{p}probability"], axis=-1),
            helper.make_node(
                "ReduceMax", [f"{p}probability", f"{p}axes"], [f"{p}confidence"], keepdims=0
            ),
            helper.make_node("Gather", ["thresholds", f"{p}place"], [f"{p}threshold"], axis=0),
            helper.make_node("Greater", [f"{p}confidence", f"{p}threshold"], [f"{p}leave"]),
            helper.make_node("If", [f"{p}leave"], [name], then_branch=own_logits, else_branch=rest),
        ]
    )
    graph.output.append(answer)
    return graph


def _rename(graph: Any, old: str, new: str) -> None:
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == old:
                node.input[place] = new
