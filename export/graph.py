"""Exports a PyTorch module as an ONNX file, with weights in one file shared by all graphs."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lgvit_edge._support.optional import require
from lgvit_edge.errors import ExportError

_INLINE_BYTES = 4096  # smaller tensors (shapes, scalars) stay in the graph for its optimisers
_PAGE = 4096  # weights start at page borders, so that they can be memory-mapped


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


def export_graph(
    module: nn.Module,
    example: Tensor,
    path: Path,
    *,
    input_name: str,
    output_names: list[str],
    opset: int,
    batch: tuple[int, int],
    store: WeightStore,
    rewrite: Callable[[Any], Any] | None = None,
) -> None:
    """Export ``module``, in eval mode and with one input, as an ONNX file at ``path``.

    ``example`` is an input of batch 1, or of batch 2 where ``batch``, smallest and largest,
    differ. ``rewrite`` changes the ``onnx.ModelProto`` before it is written.

    Raises:
        ExportError: the exporter refuses the module.
        OSError: the file cannot be written.
    """
    require("onnxscript", extra="export")
    ir = require("onnx_ir", extra="export")
    dynamic = None
    if batch[0] != batch[1]:
        dynamic = ({0: torch.export.Dim("batch", min=batch[0], max=batch[1])},)
    _read_operators_once()
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[input_name],
                output_names=output_names,
                dynamic_shapes=dynamic,
                custom_translation_table={torch.ops.aten.gelu.default: _gelu(opset)},
                verbose=False,
            )
    except Exception as error:  # the exporter's own errors share no base class
        reason = str(error).strip().splitlines()[0][:300]
        raise ExportError(f"PyTorch cannot export {path.name}: {reason}") from error
    if program is None:
        raise ExportError(f"PyTorch exported nothing for {path.name}")
    model = program.model
    _forget_sources(model)
    if rewrite is not None:
        model = ir.serde.deserialize_model(rewrite(ir.serde.serialize_model(model)))
    _externalise(ir, model, store, path.parent)
    ir.save(model, path)


def _forget_sources(model: Any) -> None:
    """Drop the exporter's stack traces: half the file, and they reveal paths of this machine."""
    graph = model.graph
    values = (*graph.initializers.values(), *graph.inputs, *graph.outputs)
    for part in (model, graph, *graph.all_nodes(), *values):
        part.metadata_props.clear()


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
