"""Checks that the parsed network and the compiled engine have the tensors and types asked for."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from lgvit_edge.bundle.manifest import GraphSpec
from lgvit_edge.errors import BuildError
from lgvit_edge.machine.tensorrt import TensorRT

_PRODUCTS = ("MATRIX_MULTIPLY", "CONVOLUTION", "FULLY_CONNECTED")


def check_tensors(trt: TensorRT, network: Any, graph: GraphSpec) -> None:
    """Raise ``BuildError`` unless inputs and outputs are the manifest's: name, dtype and shape."""
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    have = [(t.name, trt.dtype(t.dtype), tuple(t.shape)) for t in tensors]
    want = [(t.name, t.dtype, t.shape) for t in (*graph.inputs, *graph.outputs)]
    if have != want:
        raise BuildError(f"{graph.graph.file}: expected tensors {want}, TensorRT reads {have}")


def check_layers(trt: TensorRT, network: Any, graph: GraphSpec, dtype: str, int8: bool) -> None:
    """Check that a strongly typed network's products are in the type asked for.

    Otherwise a fall-back to float32, which is only slower, would stay unnoticed.

    Raises:
        BuildError: they are not, or nothing is quantized although int8 was asked for.
    """
    dtypes: Counter[str] = Counter()
    quantized = 0
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        quantized += layer.type.name == "QUANTIZE"
        if layer.type.name in _PRODUCTS:
            dtypes[trt.dtype(layer.get_output(0).dtype)] += 1
    if int8 and not quantized:
        raise BuildError(f"{graph.graph.file}: int8 was asked for, nothing is quantized")
    if set(dtypes) - {dtype}:
        raise BuildError(
            f"{graph.graph.file}: expected products in {dtype}, TensorRT reads {dict(dtypes)}; "
            "export the bundle again"
        )


def check_engine(trt: TensorRT, engine: Any, graph: GraphSpec, dtype: str) -> None:
    """Check the types that a loaded engine reports; needs a GPU.

    Raises:
        BuildError: its inputs or outputs have other types, or no layer is in half precision.
    """
    for spec in (*graph.inputs, *graph.outputs):
        have = trt.dtype(engine.get_tensor_dtype(spec.name))
        if have != spec.dtype:
            raise BuildError(
                f"{graph.graph.file}: expected {spec.name} in {spec.dtype}, the engine has {have}"
            )
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.module.LayerInformationFormat.JSON)
    inner = _inner_types(text, {spec.name for spec in (*graph.inputs, *graph.outputs)})
    if dtype == "float16" and inner and not any("FP16" in t or "Half" in t for t in inner):
        raise BuildError(
            f"{graph.graph.file}: half precision was asked for, but no layer of the engine works "
            "in it"
        )


def _inner_types(text: str, outer: set[str]) -> list[str]:
    """Return the formats of the tensors between layers, from the inspector's JSON.

    Inputs and outputs are left out, because the engine may convert them. The list is empty where
    all is one fused layer, or the engine stores no details.
    """
    try:
        layers = json.loads(text).get("Layers", [])
    except (ValueError, AttributeError):
        return []
    outputs = [t for layer in layers if isinstance(layer, dict) for t in layer.get("Outputs", [])]
    return [str(t.get("Format/Datatype")) for t in outputs if t.get("Name") not in outer]
