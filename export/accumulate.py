"""Makes a half-precision graph ask for matrix products that are summed in float32.

Kernels may sum in half precision (NVIDIA/TensorRT#2942). In a strongly typed network NVIDIA asks
for float32 by a pattern that TensorRT fuses into one kernel: inputs cast to float32, product, cast
back (Model-Connect#1158; Torch-TensorRT's ``use_fp32_acc``, pytorch/TensorRT#3110). Its sources
name matrix products alone, so convolutions stay as they are, and a bias is added after the cast.
"""

from __future__ import annotations

from typing import Any

from lgvit_edge._support.optional import require


def accumulate_in_float32(model: Any) -> None:
    """Put casts around the half-precision matrix products of an ``onnx_ir.Model``, in place.

    Weights stay float16 in the file: a cast is a node, and each value is cast once.
    """
    ir = require("onnx_ir", extra="export")
    graph, widened = model.graph, {}

    def cast(value: Any, to: Any, name: str) -> Any:
        node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(to))], name=name)
        node.outputs[0].name, node.outputs[0].shape = name, value.shape
        node.outputs[0].type = ir.TensorType(to)
        return node

    for node in list(graph):
        half = node.outputs[0].dtype == ir.DataType.FLOAT16
        if node.op_type not in ("MatMul", "Gemm") or not half:
            continue
        for value in node.inputs[:2]:
            if value not in widened:
                wide = cast(value, ir.DataType.FLOAT, f"{value.name}/float32")
                graph.insert_before(node, wide)
                widened[value] = wide.outputs[0]
        factors = [widened[value] for value in node.inputs[:2]]
        attributes = list(node.attributes.values())
        product = ir.Node("", node.op_type, factors, attributes, name=node.name)
        product.outputs[0].name = f"{node.name}/float32"
        back = cast(product.outputs[0], ir.DataType.FLOAT16, f"{node.name}/float16")
        new = [product, back]
        if len(node.inputs) > 2:  # the bias of Gemm
            biased = [back.outputs[0], node.inputs[2]]
            new.append(ir.Node("", "Add", biased, name=f"{node.name}/bias"))
        old = node.outputs
        ir.convenience.replace_nodes_and_values(graph, node, [node], new, old, new[-1].outputs)
