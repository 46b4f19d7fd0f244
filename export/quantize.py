"""int8 for the blocks' MLPs: Q/DQ pairs by ONNX Runtime's static quantizer.

Only ``fc1`` and ``fc2`` are quantized, always both of a block: they are two thirds of its products,
and int8 projections around half-precision attention were slower, or wrong, on TensorRT as others
measured. Patch embedding, attention, heads and classifiers stay in the graph's own precision,
because thresholds are compared with what the heads say.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lgvit_edge._optional import require
from lgvit_edge.model import LGViT
from lgvit_edge.model.backbone import Block

METHOD = "99.999th percentile of |x| per tensor, MLPs of blocks whose inputs have no outliers"
_PERCENTILE = 99.999
# Where the largest value is this many times the 99.9th percentile, 8 bits would be spent on a few
# outliers: trained ViTs have such blocks, and quantizing them cost most of the accuracy.
_MAX_SPREAD = 6.0
_OCTAVE = 64  # bins per factor of two, so a limit is known to 1 %
_LOWEST, _HIGHEST = -20, 20  # exponents of the histogram's range
_LINEARS = re.compile(r"(?:^|\.)steps\.(\d+)\.(fc[12])\.bias$")

Limits = dict[str, float]  # by layer, "fc1" and "fc2": the largest |x| that is represented


@dataclass
class _Histogram:
    """How often each size of |x| was seen, on a logarithmic scale."""

    counts: Tensor
    top: float = 0.0

    def add(self, x: Tensor) -> None:
        size = x.detach().abs().flatten()
        self.top = max(self.top, float(size.max()))
        places = (size.clamp_min(2.0**_LOWEST).log2() - _LOWEST) * _OCTAVE
        last = len(self.counts) - 1
        self.counts += torch.bincount(places.long().clamp_max(last), minlength=last + 1)

    def percentile(self, share: float) -> float:
        wanted = math.ceil(float(self.counts.sum()) * share / 100)
        place = int(torch.searchsorted(self.counts.cumsum(0), wanted))
        return min(self.top, float(2.0 ** ((place + 1) / _OCTAVE + _LOWEST)))


def calibrate(model: LGViT, batches: Iterator[Tensor]) -> dict[int, Limits]:
    """Run images through the float32 model and see how large the MLPs' inputs get.

    Args:
        model: in eval mode.
        batches: normalised ``[B, 3, H, W] float32``.

    Returns:
        Limits of the blocks (1-based) whose MLP can be quantized.
    """
    size = (_HIGHEST - _LOWEST) * _OCTAVE
    seen: dict[tuple[int, str], _Histogram] = {}
    hooks = []
    for number, block in enumerate(model.backbone.blocks, 1):
        for name in ("fc1", "fc2"):
            histogram = seen[number, name] = _Histogram(torch.zeros(size, dtype=torch.int64))
            layer = getattr(block, name)
            hooks.append(
                layer.register_forward_pre_hook(lambda _, inputs, h=histogram: h.add(inputs[0]))
            )
    try:
        with torch.no_grad():
            for pixels in batches:
                model.hidden_states(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    limits: dict[int, Limits] = {}
    for number in range(1, len(model.backbone.blocks) + 1):
        pair = {name: seen[number, name] for name in ("fc1", "fc2")}
        if all(h.top <= _MAX_SPREAD * h.percentile(99.9) for h in pair.values()):
            limits[number] = {name: h.percentile(_PERCENTILE) for name, h in pair.items()}
    return limits


def limits_of(segment: nn.Module, model: LGViT, limits: Mapping[int, Limits]) -> dict[int, Limits]:
    """``limits`` by place in the segment's ``steps`` instead of by block."""
    blocks = list(model.backbone.blocks)
    steps = list(segment.steps)  # type: ignore[arg-type]  # every segment has them
    numbers = {i: blocks.index(step) + 1 for i, step in enumerate(steps) if isinstance(step, Block)}
    return {i: limits[number] for i, number in numbers.items() if number in limits}


def quantize(model: Any, limits: Mapping[int, Limits]) -> Any:
    """Put Q/DQ pairs around the MLPs' products.

    The options are those a strongly typed TensorRT parser accepts: symmetric, no quantized bias,
    no pair at the output.

    Args:
        model: the ONNX graph, float32 or float16, opset 19 or 20, weights inside.
        limits: from ``limits_of``.

    Returns:
        The quantized graph; scales have the graph's own type.
    """
    if not limits:
        return model
    quantization = require("onnxruntime.quantization", extra="cpu")
    calibration = require("onnxruntime.quantization.calibrate", extra="cpu")
    quantizer = require("onnxruntime.quantization.qdq_quantizer", extra="cpu")
    nodes, ranges = [], {}
    for node, (step, layer) in _products(model.graph):
        if step in limits:
            limit = np.array(limits[step][layer], _numpy_type(model.graph, node.input[1]))
            nodes.append(node.name)
            ranges[node.input[0]] = calibration.TensorData(lowest=-limit, highest=limit)
    method = calibration.CalibrationMethod.MinMax
    made = quantizer.QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,
        weight_qType=quantization.QuantType.QInt8,
        activation_qType=quantization.QuantType.QInt8,
        tensors_range=calibration.TensorsData(method, ranges),
        nodes_to_quantize=nodes,
        nodes_to_exclude=[],
        op_types_to_quantize=["MatMul", "Gemm"],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm", "Conv"],
        },
    )
    return made.quantize_model()


def _products(graph: Any) -> Iterator[tuple[Any, tuple[int, str]]]:
    """Matrix products of MLPs with their place, told by the name of the bias that is added."""
    makers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        for name in node.input:
            found = _LINEARS.search(name)
            if found is None:
                continue
            product = node if node.op_type == "Gemm" else None
            for other in node.input:
                maker = makers.get(other)
                if maker is not None and maker.op_type == "MatMul":
                    product = maker
            assert product is not None, f"{name} is added to no product"
            yield product, (int(found[1]), found[2])


def _numpy_type(graph: Any, weight: str) -> Any:
    onnx = require("onnx", extra="export")
    kind = next(i.data_type for i in graph.initializer if i.name == weight)
    return onnx.helper.tensor_dtype_to_np_dtype(kind)
