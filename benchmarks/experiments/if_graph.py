"""Builds a whole early-exit chain as one ONNX graph with nested ``If`` nodes, as a rival.

The thresholds ``[M] float32`` are an input of the graph. Where the largest softmax of exit m is
above the m-th threshold, the ``If`` returns its logits. Otherwise it runs its other branch: the
next segment and the ``If`` in it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.optional import require
from lgvit_edge.bundle.directory import WEIGHTS, Bundle
from lgvit_edge.runtime.backends.ort_pool import join_pool, open_session


class IfGraph:
    """Runs the graph up to a given exit, with inputs and outputs bound beforehand."""

    def __init__(
        self, bundle: Bundle, folder: Path, images: NDArray[np.uint8], threads: int
    ) -> None:
        """Build the graph in ``folder`` and load it."""
        ort = require("onnxruntime", extra="cpu")
        path = build(bundle, folder)
        size = join_pool(ort, threads)
        self._session, _ = open_session(
            ort, str(path), size, shared=True, providers=["CPUExecutionProvider"]
        )
        self._thresholds = np.zeros(len(bundle.manifest.segments) - 1, np.float32)
        self.logits = np.zeros((1, bundle.manifest.num_classes), np.float32)
        self._binding = self._session.io_binding()
        for name, array in (("image", images), ("thresholds", self._thresholds)):
            self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._binding.bind_output(
            "logits", "cpu", 0, np.float32, self.logits.shape, self.logits.ctypes.data
        )
        self._images = images  # the binding has only its address

    def __call__(self, exit: int) -> object:
        """Runs the graph up to ``exit``, 1-based."""
        self._thresholds[:] = 2.0
        self._thresholds[exit - 1 : exit] = -1.0
        self._session.run_with_iobinding(self._binding)
        return self.logits.argmax()


def build(bundle: Bundle, folder: Path) -> Path:
    """Writes the graph and its weights; returns the graph's path."""
    onnx, compose = require("onnx", extra="export"), require("onnx.compose", extra="export")
    # A copy, because ONNX Runtime refuses hard links.
    shutil.copyfile(bundle.root / WEIGHTS, folder / Path(WEIGHTS).name)
    manifest = bundle.manifest
    inner: Any = None
    for index in reversed(range(len(manifest.segments))):
        segment = manifest.segments[index].spec
        model = onnx.load(bundle.path(segment.graph), load_external_data=False)
        graph = compose.add_prefix(model, f"s{index}_").graph
        source = f"s{index}_{segment.inputs[0].name}"
        if index:  # reads the hidden state of the graph around it
            outer = f"s{index - 1}_{manifest.segments[index - 1].spec.outputs[0].name}"
            _rename(graph, source, outer)
            del graph.input[:]
        else:
            _rename(graph, source, "image")
            graph.input[0].name = "image"
        inner = _with_exit(onnx, graph, index, f"s{index}_{segment.logits.name}", inner)
    inner.input.append(
        onnx.helper.make_tensor_value_info(
            "thresholds", onnx.TensorProto.FLOAT, [len(manifest.segments) - 1]
        )
    )
    whole = onnx.helper.make_model(
        inner, opset_imports=model.opset_import, ir_version=model.ir_version
    )
    path = folder / "if_graph.onnx"
    onnx.save(whole, path)
    return path


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
