"""Exports a chain of PyTorch modules as ONNX files, with weights in one file for all of them."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lgvit_edge._support.optional import require
from lgvit_edge.errors import ExportError, in_one_line

_INLINE_BYTES = 4096  # smaller tensors (shapes, scalars) stay in the graph for its optimisers
_PAGE = 4096  # weights start at page borders, so that they can be memory-mapped
# The exporter notes on each node the modules around it, outermost first, and its own name.
_SCOPES = "pkg.torch.onnx.name_scopes"
_PART = re.compile(r"^parts\.\d+\.?")
_BATCH = re.compile(r"\bbatch_\d+\b")


class WeightStore:
    """Appends weights to a new file, and stores equal ones only once.

    The baseline shares its blocks with the segments, so a bundle is hardly larger than its weights.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offsets: dict[bytes, int] = {}
        path.touch()

    def place(self, content: bytes) -> int:
        """Return the offset of ``content`` in the file, after writing it if it is new."""
        key = hashlib.sha256(content).digest()
        if key not in self._offsets:
            with self.path.open("ab") as file:
                offset = -(-file.tell() // _PAGE) * _PAGE
                file.write(b"\0" * (offset - file.tell()) + content)
            self._offsets[key] = offset
        return self._offsets[key]


@dataclass(frozen=True)
class Part:
    """A module to export: in eval mode, with one input.

    ``example`` is an input of batch 1, or of batch 2 where the batch varies.
    """

    file: str  # its name in errors
    module: nn.Module
    example: Tensor
    input: str
    outputs: tuple[str, ...]


class Traced(NamedTuple):
    """The graph of a part, as ``onnx_ir.Model``, and the same in two."""

    whole: Any
    blocks: Any = None  # from the part's input to its first output; None where it has one output,
    head: Any = None  # and the second from the first; or where that takes more than the first


class _SideBySide(nn.Module):
    """Runs every part on an input of its own."""

    def __init__(self, parts: Sequence[Part]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(part.module for part in parts)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs: list[Tensor] = []
        for part, x in zip(self.parts, inputs, strict=True):
            output = part(x)
            outputs += output if isinstance(output, tuple) else (output,)
        return tuple(outputs)


def trace(parts: Sequence[Part], *, opset: int, batch: tuple[int, int]) -> tuple[list[Traced], Any]:
    """Return the graphs of each part, and the graph of the whole chain, an ``onnx_ir.Model``.

    In the chain, the first output of a part is the input of the next one; it gives the last output
    of the last part. ``batch`` is the smallest and the largest. All parts are traced together,
    which takes half the time of one after the other: the chain's blocks are traced once.

    Raises:
        ExportError: the exporter refuses a part; names its file.
    """
    require("onnxscript", extra="export")
    ir = require("onnx_ir", extra="export")
    dynamic = None
    if batch[0] != batch[1]:
        # A dimension for each input: were it one, a part would read its batch from another's input.
        low, high = batch
        dims = [torch.export.Dim(f"batch_{i}", min=low, max=high) for i in range(len(parts))]
        dynamic = (tuple({0: dim} for dim in dims),)
    _read_operators_once()
    inputs = [f"{i}.{part.input}" for i, part in enumerate(parts)]
    outputs = [[f"{i}.{name}" for name in part.outputs] for i, part in enumerate(parts)]
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                _SideBySide(parts).eval(),
                tuple(part.example for part in parts),
                dynamo=True,
                opset_version=opset,
                input_names=inputs,
                output_names=[name for names in outputs for name in names],
                dynamic_shapes=dynamic,
                custom_translation_table={torch.ops.aten.gelu.default: _gelu(opset)},
                verbose=False,
            )
    except Exception as error:  # the exporter's own errors share no base class
        if len(parts) > 1:
            for part in parts:
                trace([part], opset=opset, batch=batch)  # so that the error names it
        what = parts[0].file if len(parts) == 1 else "the chain, but each of its graphs alone"
        reason = in_one_line(error)
        raise ExportError(f"PyTorch cannot export {what}: {reason}") from error
    assert program is not None  # as with dynamo=True
    whole = program.model.graph
    if opset < 18:
        _lower(ir, whole, opset)
    traced = [
        Traced(ir.convenience.extract(whole, [given], names), *_parts(ir, whole, given, names))
        for given, names in zip(inputs, outputs, strict=True)
    ]
    values = ir.convenience.create_value_mapping(whole)
    for names, given in zip(outputs, inputs[1:], strict=False):
        values[given].replace_all_uses_with(values[names[0]])
    chain = ir.convenience.extract(whole, inputs[:1], outputs[-1][-1:])

    def model(graph: Any) -> Any:
        if graph is None:
            return None
        _rename(ir, graph)
        return ir.Model(graph, ir_version=program.model.ir_version)

    return [Traced(*map(model, graphs)) for graphs in traced], model(chain)


def _parts(ir: Any, whole: Any, given: str, outputs: list[str]) -> tuple[Any, ...]:
    """Return the graphs of a part's first output, and of its second from the first."""
    if len(outputs) == 1:
        return ()
    first, second = outputs
    try:
        head = ir.convenience.extract(whole, [first], [second])
    except ValueError:  # it reads more than the first
        return ()
    return ir.convenience.extract(whole, [given], [first]), head


def _lower(ir: Any, graph: Any, opset: int) -> None:
    """Rewrites a graph of opset 18 for ``opset`` 17, which the exporter often leaves at 18.

    Raises:
        ExportError: an operator of it has no form in ``opset``.
    """
    onnx = require("onnx", extra="export")
    if graph.opset_imports[""] == opset:
        return
    for node in graph:
        kind, axes = node.op_type, node.inputs[1] if len(node.inputs) > 1 else None
        if onnx.defs.get_schema(kind, 18).since_version <= opset:
            continue
        if kind.startswith("Reduce") and (axes is None or axes.const_value is not None):
            if axes is not None:  # an attribute until then
                node.attributes["axes"] = ir.AttrInt64s("axes", axes.const_value.numpy().tolist())
                node.resize_inputs(1)
            node.attributes.pop("noop_with_empty_axes", None)
        elif kind == "Split" and axes is None:  # into equal parts, as many as it has outputs
            node.attributes.pop("num_outputs", None)
        elif kind != "Pad" or len(node.inputs) > 3:  # its axes, which came with 18
            raise ExportError(f"opset {opset} has no {kind} as this model needs it: use opset 18")
    graph.opset_imports[""] = opset


def save(
    model: Any, path: Path, store: WeightStore, rewrite: Callable[[Any], Any] | None = None
) -> None:
    """Write a graph of ``trace`` at ``path``, and its weights into ``store``.

    ``rewrite`` changes the ``onnx.ModelProto`` before it is written.

    Raises:
        OSError: a file cannot be written.
    """
    ir = require("onnx_ir", extra="export")
    if rewrite is not None:
        model = ir.serde.deserialize_model(rewrite(ir.serde.serialize_model(model)))
    _externalise(ir, model, store, path.parent)
    _bare(ir, model)
    ir.save(model, path)


def _rename(ir: Any, graph: Any) -> None:
    """Give nodes and values the names they have in their part, and drop the exporter's notes.

    A node is named after its module: ``blocks.5.fc1/MatMul_606``. The notes are half the file, and
    their stack traces reveal paths of this machine.
    """
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        module = _PART.sub("", scopes[-2]) if len(scopes) > 1 else ""
        node.name = f"{module}/{node.name}".replace("/node_", "/").lstrip("/")
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
            _name_batch(ir, value)
    for value in (*graph.inputs, *graph.outputs):
        value.name = value.name.partition(".")[2]
    for value in (*graph.inputs, *tuple(graph.initializers.values())):
        value.metadata_props.clear()
        _name_batch(ir, value)
        # The exporter stores equal small weights once: another part may have one of this name.
        name = _PART.sub("", value.name)
        if value.is_initializer() and name not in graph.initializers:
            value.name = name


def _name_batch(ir: Any, value: Any) -> None:
    """Call the batch of every part by the same name."""
    if value.shape is not None and not value.shape.is_static():
        names = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
        value.shape = ir.Shape(_BATCH.sub("batch", n) if isinstance(n, str) else n for n in names)


def _externalise(ir: Any, model: Any, store: WeightStore, base: Path) -> None:
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.nbytes < _INLINE_BYTES:
            continue
        value.const_value = ir.ExternalTensor(
            location=store.path.relative_to(base).as_posix(),
            offset=store.place(tensor.tobytes()),
            length=tensor.nbytes,
            dtype=tensor.dtype,
            shape=tensor.shape,
            name=tensor.name,
            base_dir=base,
        )


def _bare(ir: Any, model: Any) -> None:
    """Sort nodes, and leave out what backends find by themselves: notes, shapes of inner values.

    What is not in a graph, nobody has to check before it is run.
    """
    graph = model.graph
    graph.sort()  # the quantizer appends its nodes
    model.producer_name = model.producer_version = None
    model.metadata_props.clear()
    graph.metadata_props.clear()
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = value.type = None
    for value in graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.Tensor(tensor.numpy(), name=tensor.name)  # as raw bytes
        value.shape = value.type = None  # the tensor has them


def _gelu(opset: int) -> Any:
    """Return a translation of GELU: one operator from opset 20, else a form that optimisers fuse.

    That is x * (1 + erf(x / sqrt 2)) * 0.5, in this order: ONNX Runtime and TensorRT fuse it into
    one kernel, but not the order that PyTorch's own translation writes.
    """
    onnxscript = require("onnxscript", extra="export")
    op = getattr(onnxscript, f"opset{opset}")

    def gelu(x: Any, approximate: str = "none") -> Any:
        if opset >= 20:
            return op.Gelu(x, approximate=approximate)
        if approximate == "tanh":
            cube = op.Mul(op.Mul(x, op.Mul(x, x)), op.CastLike(0.044715, x))
            bent = op.Tanh(op.Mul(op.Add(x, cube), op.CastLike((2.0 / math.pi) ** 0.5, x)))
            return op.Mul(op.Mul(x, op.Add(bent, op.CastLike(1.0, x))), op.CastLike(0.5, x))
        inner = op.Erf(op.Div(x, op.CastLike(2.0**0.5, x)))
        outer = op.Mul(x, op.Add(inner, op.CastLike(1.0, x)))
        return op.Mul(outer, op.CastLike(0.5, x))

    return gelu


def _read_operators_once() -> None:
    """Keep what PyTorch reads from the sources of its 500 ONNX operators, anew for every graph."""
    # Not public: where another PyTorch names it otherwise, exports only take longer.
    with contextlib.suppress(ImportError, AttributeError):
        from torch.onnx._internal._lazy_import import onnxscript_apis  # type: ignore[attr-defined]

        if not hasattr(onnxscript_apis.get_torchlib_ops, "cache_info"):
            onnxscript_apis.get_torchlib_ops = functools.cache(onnxscript_apis.get_torchlib_ops)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings about packages and its own deprecations."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
