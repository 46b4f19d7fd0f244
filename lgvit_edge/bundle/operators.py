"""The ONNX operators that an export may write: a graph with any other is not run.

Each computes one tensor from tensors. None runs other graphs, none reads files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lgvit_edge.errors import UsageError

OPSETS = range(17, 24)  # below 17 there is no LayerNormalization operator
MAX_RANK = 8  # of any tensor


@dataclass(frozen=True)
class Attribute:
    """What an attribute may be: its type in ONNX, and the values that are allowed.

    Attributes:
        type: ``INT``, ``INTS`` (at most 8), ``FLOAT`` or ``STRING``.
        low: the smallest number, also of several.
        high: the largest.
        among: instead, the values that are allowed.
        needed: whether it may not be left out: its default is another value.
    """

    type: str
    low: float = 0
    high: float = 0
    among: tuple[int | str, ...] = ()
    needed: bool = False

    def takes(self, value: Any) -> bool:
        """Return whether a value of this type is allowed; NaN is not."""
        if self.among:
            return value in self.among
        values = value if self.type == "INTS" else [value]
        return len(values) <= MAX_RANK and all(self.low <= v <= self.high for v in values)

    def __str__(self) -> str:
        values = ", ".join(map(str, self.among)) or f"{self.low}..{self.high}"
        return f"{self.type} of {values}"


@dataclass(frozen=True)
class Operator:
    """What nodes of one operator may look like.

    Attributes:
        inputs: a letter for each: ``x`` for any value, ``c`` for a weight of the graph.
        optional: how many of the last inputs may be left out.
        most: how many inputs there may be, where the last may be repeated.
        attributes: what is allowed, by name.
        outputs: how many outputs there may be.
    """

    inputs: str
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    optional: int = 0
    most: int = 0
    outputs: int = 1

    def __post_init__(self) -> None:
        if not self.inputs or set(self.inputs) - {"x", "c"}:
            raise UsageError(f"inputs must be letters x and c, such as 'xc': {self.inputs!r}")

    def letters(self, count: int) -> str | None:
        """Return the letters of ``count`` inputs; None where there may not be so many."""
        usual = len(self.inputs)
        if not usual - self.optional <= count <= max(usual, self.most):
            return None
        return self.inputs[:count] + self.inputs[-1] * (count - usual)


def _one(value: float, type: str = "INT") -> Attribute:
    return Attribute(type, value, value)


_AXIS = Attribute("INT", -MAX_RANK, MAX_RANK - 1)
_AXES = Attribute("INTS", -MAX_RANK, MAX_RANK - 1)
_FLAG = Attribute("INT", 0, 1)
_FLOATS = Attribute("INT", among=(1, 10))  # float32 and float16 of TensorProto.DataType
# Until opset 18 the axes are an attribute, then an input.
_REDUCED = {"axes": _AXES, "keepdims": _FLAG, "noop_with_empty_axes": _one(0)}
_SIDES = Attribute("INTS", 1, 4096)

OPERATORS: dict[str, Operator] = {}


def register_operator(name: str, operator: Operator) -> None:
    """Allow one more operator of ONNX, which a kind of your own needs; also where its bundles run.

    Example:
        register_operator("Elu", Operator("x", {"alpha": Attribute("FLOAT", 0, 10)}))

    It must make nothing larger than its inputs, nor read files or run other graphs.

    Raises:
        UsageError: it is allowed already.
    """
    if name in OPERATORS:
        raise UsageError(f"there is an operator {name!r} already")
    OPERATORS[name] = operator


for _name, _operator in {
    "Add": Operator("xx"),
    "Cast": Operator("x", {"to": _FLOATS}),
    "Clip": Operator("xcc", optional=1),
    "Concat": Operator("xx", {"axis": _AXIS}, most=8),
    "Conv": Operator(
        "xcc",
        {
            "auto_pad": Attribute("STRING", among=("NOTSET",)),
            "dilations": _one(1, "INTS"),
            "group": Attribute("INT", 1, 2**16),
            "kernel_shape": _SIDES,
            "pads": Attribute("INTS", 0, 64),
            "strides": _SIDES,
        },
        optional=1,
    ),
    "DequantizeLinear": Operator("xcc", {"axis": _AXIS}),
    "Div": Operator("xx"),
    "Erf": Operator("x"),
    "Expand": Operator("cx"),
    "Gather": Operator("xc", {"axis": _AXIS}),
    "Gelu": Operator("x", {"approximate": Attribute("STRING", among=("none", "tanh"))}),
    "Gemm": Operator(
        "xcc",
        {"alpha": _one(1, "FLOAT"), "beta": _one(1, "FLOAT"), "transA": _one(0), "transB": _FLAG},
        optional=1,
    ),
    "LayerNormalization": Operator(
        "xcc", {"axis": _one(-1), "epsilon": Attribute("FLOAT", 0, 1), "stash_type": _one(1)}
    ),
    "MatMul": Operator("xx"),
    "Mul": Operator("xx"),
    "Neg": Operator("x"),
    "Pad": Operator("xc", {"mode": Attribute("STRING", among=("constant",))}),
    "QuantizeLinear": Operator("xcc"),
    "ReduceL2": Operator("xc", _REDUCED, optional=1),
    "ReduceMean": Operator("xc", _REDUCED, optional=1),
    "Relu": Operator("x"),
    "Reshape": Operator("xc", {"allowzero": _FLAG}),
    "Shape": Operator("x", {"start": _one(0), "end": Attribute("INT", 1, 1, needed=True)}),
    "Sigmoid": Operator("x"),
    "Slice": Operator("xcccc", optional=1),
    "Softmax": Operator("x", {"axis": _one(-1)}),
    "Split": Operator("x", {"axis": _AXIS, "num_outputs": Attribute("INT", 1, 8)}, outputs=8),
    "Squeeze": Operator("xc"),
    "Tanh": Operator("x"),
    "Transpose": Operator("x", {"perm": Attribute("INTS", 0, MAX_RANK - 1)}),
    "Unsqueeze": Operator("xc"),
}.items():
    register_operator(_name, _operator)
