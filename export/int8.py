"""Quantizes the blocks' MLPs to int8, with Q/DQ pairs by ONNX Runtime's static quantizer.

Only ``fc1`` and ``fc2`` are quantized, always both of a block: they are two thirds of its products,
and others measured that int8 projections around half-precision attention are slower, or wrong, on
TensorRT. Patch embedding, attention, heads and classifiers stay in the graph's own precision,
because thresholds are compared with the heads' confidences.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lgvit_edge._support.optional import require
from lgvit_edge.model import LGViT

METHOD = "99.999th percentile of |x| per tensor; MLPs whose int8 leaves exit decisions as they are"
_PERCENTILE = 99.999
# Blocks whose largest value is more than this many times the 99.9th percentile are not quantized:
# 8 bits would represent a few outliers only. Trained ViTs have such blocks, and quantizing them
# cost most of the accuracy.
_MAX_SPREAD = 6.0
# Share of exit decisions on the calibration images that may change, averaged over the thresholds
# below. Half of what the gate allows on other images (``evidence.ALLOWED``).
_CHANGED_DECISIONS = 0.015
_THRESHOLDS = [0.5 + 0.05 * i for i in range(10)]
_OCTAVE = 64  # bins per factor of two, so a limit is known to 1 %
_LOWEST, _HIGHEST = -20, 20  # exponents of the histogram's range
_LINEARS = re.compile(r"(?:.*\.)?blocks\.(\d+)\.(fc[12])/")

Limits = dict[str, float]  # by layer, "fc1" and "fc2": the largest |x| that is represented


class _Histogram:
    """Counts the sizes of |x| on a logarithmic scale."""

    def __init__(self) -> None:
        self.counts = torch.zeros((_HIGHEST - _LOWEST) * _OCTAVE, dtype=torch.int64)
        self.top = 0.0

    def add(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        size = inputs[0].detach().abs().flatten()
        self.top = max(self.top, float(size.max()))
        places = (size.clamp_min(2.0**_LOWEST).log2() - _LOWEST) * _OCTAVE
        last = len(self.counts) - 1
        self.counts += torch.bincount(places.long().clamp_max(last), minlength=last + 1)

    def percentile(self, share: float) -> float:
        wanted = math.ceil(float(self.counts.sum()) * share / 100)
        place = int(torch.searchsorted(self.counts.cumsum(0), wanted))
        return min(self.top, float(2.0 ** ((place + 1) / _OCTAVE + _LOWEST)))


def calibrate(model: LGViT, batches: Iterator[Tensor]) -> dict[int, Limits]:
    """Run images through the float32 model and measure how large the MLPs' inputs get.

    ``batches`` are normalised ``[B, 3, H, W] float32``. Returns limits of the blocks (1-based)
    whose MLP can be quantized.
    """
    histograms = [{name: _Histogram() for name in ("fc1", "fc2")} for _ in model.backbone.blocks]
    with torch.no_grad(), ExitStack() as hooks:
        for block, pair in zip(model.backbone.blocks, histograms, strict=True):
            for name, histogram in pair.items():
                layer = getattr(block, name)
                hooks.enter_context(layer.register_forward_pre_hook(histogram.add))
        for pixels in batches:
            model.hidden_states(pixels)
    return {
        number: {name: histogram.percentile(_PERCENTILE) for name, histogram in pair.items()}
        for number, pair in enumerate(histograms, 1)
        if all(h.top <= _MAX_SPREAD * h.percentile(99.9) for h in pair.values())
    }


def choose(
    model: LGViT, limits: Mapping[int, Limits], batches: Callable[[], Iterator[Tensor]]
) -> dict[int, Limits]:
    """Choose as many blocks to quantize as possible without moving the exit decisions.

    An error in an early block passes through all blocks after it. So blocks are added in the order
    of how little each moves the confidences, until decisions change. Int8 is simulated in float32,
    which differs from the graphs by rounding.

    ``limits`` are from ``calibrate``; each call of ``batches`` yields the normalised images
    ``[B, 3, H, W] float32`` again.
    """
    moved = dict.fromkeys(limits, 0.0)
    float_confidences = []
    with torch.no_grad():
        for pixels in batches():
            states = model.hidden_states(pixels)
            reference = _confidences(model, states)
            float_confidences.append(reference)
            for number in limits:
                with _simulated(model, {number: limits[number]}):
                    changed = states[:number]
                    for block in list(model.backbone.blocks)[number - 1 :]:
                        changed.append(block(changed[-1]))
                moved[number] += float((_confidences(model, changed) - reference).abs().mean())
        expected = torch.cat(float_confidences)
        order = sorted(limits, key=lambda number: moved[number])
        low, high = 0, len(order)  # the answer is in low..high
        while low < high:
            count = (low + high + 1) // 2
            chosen = {number: limits[number] for number in order[:count]}
            with _simulated(model, chosen):
                simulated = [_confidences(model, model.hidden_states(x)) for x in batches()]
            good = _changed_decisions(expected, torch.cat(simulated)) <= _CHANGED_DECISIONS
            low, high = (count, high) if good else (low, count - 1)
    return {number: limits[number] for number in sorted(order[:low])}


def _confidences(model: LGViT, states: list[Tensor]) -> Tensor:
    """Return every exit's confidences ``[B, M + 1]``, from the hidden states."""
    pairs = zip(model.heads, model.config.exits, strict=True)
    logits = [head(states[exit.block]) for head, exit in pairs]
    logits.append(model.backbone.final(states[-1]))
    return torch.stack(logits, dim=1).softmax(dim=-1).amax(dim=-1)


def _changed_decisions(expected: Tensor, simulated: Tensor) -> float:
    """Return the share of images that change exit, averaged over thresholds users may choose."""

    def exits(confidences: Tensor, threshold: float) -> Tensor:
        over = confidences > threshold
        over[:, -1] = True
        return over.int().argmax(dim=1)

    shares = [(exits(expected, t) != exits(simulated, t)).float().mean() for t in _THRESHOLDS]
    return float(torch.stack(shares).mean())


class _Simulated(nn.Module):
    """Simulates an int8 linear layer in float32, with one weight scale per output channel."""

    def __init__(self, linear: nn.Linear, limit: float) -> None:
        super().__init__()
        scale = linear.weight.abs().amax(dim=1, keepdim=True) / 127
        self.weight = (linear.weight / scale).round().clamp(-127, 127) * scale
        self.bias, self.step = linear.bias, limit / 127

    def forward(self, x: Tensor) -> Tensor:
        rounded = (x / self.step).round().clamp(-128, 127) * self.step
        return functional.linear(rounded, self.weight, self.bias)


@contextmanager
def _simulated(model: LGViT, limits: Mapping[int, Limits]) -> Iterator[None]:
    with ExitStack() as originals:
        for number, pair in limits.items():
            block = model.backbone.blocks[number - 1]
            for name, limit in pair.items():
                linear = getattr(block, name)
                originals.callback(setattr, block, name, linear)
                setattr(block, name, _Simulated(linear, limit))
        yield


def quantize(model: Any, limits: Mapping[int, Limits]) -> Any:
    """Return an ONNX graph with Q/DQ pairs around the matrix products of the MLPs.

    The options are those that a strongly typed TensorRT parser accepts: symmetric, no quantized
    bias, no pair at the output. Scales have the graph's own type.

    Args:
        model: float32 or float16, opset 19 or 20, weights inside.
        limits: of the blocks in the graph, by number.
    """
    onnx = require("onnx", extra="export")
    quantization = require("onnxruntime.quantization", extra="cpu")
    calibration = require("onnxruntime.quantization.calibrate", extra="cpu")
    quantizer = require("onnxruntime.quantization.qdq_quantizer", extra="cpu")
    types = {weight.name: weight.data_type for weight in model.graph.initializer}
    nodes, ranges = [], {}
    for node, (number, layer) in _products(model.graph):
        if number in limits:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(types[node.input[1]])
            limit = np.array(limits[number][layer], dtype)
            nodes.append(node.name)
            ranges[node.input[0]] = calibration.TensorData(lowest=-limit, highest=limit)
    assert len(nodes) == 2 * len(limits), "each block has two layers"
    for node in model.graph.node:
        if node.op_type == "Softmax":  # older onnxruntimes set their range, which must be there
            ranges[node.output[0]] = calibration.TensorData(
                lowest=np.float32(0), highest=np.float32(1)
            )
    method = calibration.CalibrationMethod.MinMax
    return quantizer.QDQQuantizer(
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
    ).quantize_model()


def _products(graph: Any) -> Iterator[tuple[Any, tuple[int, str]]]:
    """Yield the MLPs' matrix products with block number and layer, going by the node's name."""
    for node in graph.node:
        match = _LINEARS.match(node.name)
        if match is not None and node.op_type in ("MatMul", "Gemm"):
            yield node, (int(match[1]), match[2])
