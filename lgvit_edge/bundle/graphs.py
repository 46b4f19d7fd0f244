"""Checks ONNX graphs before a backend sees them, without the onnx package.

A stranger's graph may crash a backend, or fill the memory while it is loaded. So a graph passes
only if an export could have written it:

- it has no fields, operators or attributes but those below and in ``operators``;
- each value has one name, which is defined before it is used;
- weights have the bytes that their shape needs, in the graph or in the bundle's files;
- what can be computed without an image, and so while loading, is hardly larger than the weights.

What remains: a graph may make large tensors from an image while it runs, as large models do.
``lgvit-edge verify`` runs a bundle in a process with limits.
"""

from __future__ import annotations

import itertools
import math
import re
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from lgvit_edge.bundle.manifest import GraphPart, GraphSpec
from lgvit_edge.bundle.operators import MAX_RANK, OPERATORS, OPSETS, Operator
from lgvit_edge.bundle.protobuf import BYTES, FIXED32, VARINT, Message

# Messages of onnx.proto3, with the fields that ``export.graph.save`` writes and no other.
_MODEL = Message(
    "model", ("ir_version", 1, VARINT), ("graph", 7, BYTES), ("opset_import*", 8, BYTES)
)
_OPSET = Message("set of operators", ("domain", 1, BYTES), ("version", 2, VARINT))
_GRAPH = Message(
    "graph",
    ("node*", 1, BYTES),
    ("name", 2, BYTES),
    ("initializer*", 5, BYTES),
    ("input*", 11, BYTES),
    ("output*", 12, BYTES),
)
_NODE = Message(
    "node",
    ("input*", 1, BYTES),
    ("output*", 2, BYTES),
    ("name", 3, BYTES),
    ("op_type", 4, BYTES),
    ("attribute*", 5, BYTES),
)
_ATTRIBUTE = Message(
    "attribute",
    ("name", 1, BYTES),
    ("f", 2, FIXED32),
    ("i", 3, VARINT),
    ("s", 4, BYTES),
    ("ints*", 8, VARINT),
    ("type", 20, VARINT),
)
_TENSOR = Message(
    "tensor",
    ("dims*", 1, VARINT),
    ("data_type", 2, VARINT),
    ("name", 8, BYTES),
    ("raw_data", 9, BYTES),
    ("external_data*", 13, BYTES),
    ("data_location", 14, VARINT),
)
_ENTRY = Message("entry", ("key", 1, BYTES), ("value", 2, BYTES))
_VALUE = Message("value", ("name", 1, BYTES), ("type", 2, BYTES))
_TYPE = Message("type", ("tensor", 1, BYTES))
_TENSOR_TYPE = Message("type of tensor", ("elem_type", 1, VARINT), ("shape", 2, BYTES))
_SHAPE = Message("shape", ("dim*", 1, BYTES))
_DIM = Message("size", ("dim_value", 1, VARINT), ("dim_param", 2, BYTES))

# Of ``TensorProto.DataType``: name, and bytes of an element.
_DTYPES = {1: ("float32", 4), 2: ("uint8", 1), 3: ("int8", 1), 7: ("int64", 8), 10: ("float16", 2)}
_EXTERNAL = 1  # of ``TensorProto.DataLocation``
_VALUES = {1: ("FLOAT", "f"), 2: ("INT", "i"), 3: ("STRING", "s"), 7: ("INTS", "ints")}
_IR_VERSIONS = range(8, 14)
_MAX_NODES = 20_000  # a ViT of 40 blocks has 1,200
_MAX_SIZE = 2**31
_MAX_EXPANDED = 2**24  # elements in a graph, for each image; class token and registers: thousands
_MAX_PAD = 4096
_MAX_TEXT = 1000
_NUMBER = re.compile(r"[0-9]{1,15}")

# What a value comes from.
_IMAGE, _WEIGHT, _WEIGHTS, _SIZES = "the image", "a weight", "computed weights", "sizes"
Weights = Mapping[str, int]  # bytes of the files that may hold weights, as graphs name them


def check_graph(data: bytes, spec: GraphSpec | GraphPart, opset: int, weights: Weights) -> int:
    """Check that a serialised ``ModelProto`` is one that an export writes, as the manifest says.

    Returns the bytes of weights that it takes from files.

    Args:
        data: content of the file.
        spec: what the manifest says of the graph.
        opset: what the manifest says of the operators.
        weights: see ``Weights``.

    Raises:
        ValueError: it is another; says where, what was expected and what was found.
    """
    model = _MODEL.read(memoryview(data))
    if (version := model.get("ir_version")) not in _IR_VERSIONS:
        raise ValueError(f"expected ir_version {_span(_IR_VERSIONS)}, found {version}")
    sets = [_OPSET.read(part) for part in model["opset_import"]]
    found = [(_text(part.get("domain", b"")), part.get("version")) for part in sets]
    if found != [("", opset)] or opset not in OPSETS:
        raise ValueError(
            f"expected operator set {opset} of ONNX, among {_span(OPSETS)}, found {found[:3]}"
        )
    return _Graph(spec, weights).check(_GRAPH.read(model.get("graph", memoryview(b""))))


class _Graph:
    """Checks one graph, and keeps what is known of its values so far."""

    def __init__(self, spec: GraphSpec | GraphPart, weights: Weights) -> None:
        self._spec, self._weights = spec, weights
        self._origins: dict[str, str] = {}  # what each value comes from, by its name
        self._shapes: dict[str, list[int]] = {}  # of weights
        self._numbers: dict[str, tuple[int, ...]] = {}  # in tensors that may be shapes
        self._expanded = 0  # elements
        self._copied: set[str] = set()  # weights that loading copies, and the copies

    def check(self, graph: dict[str, Any]) -> int:
        """Check the graph; return the bytes of weights that it takes from files."""
        for key, wanted in (("input", self._spec.inputs), ("output", self._spec.outputs)):
            found = [_described(_VALUE.read(part)) for part in graph[key]]
            expected = [(tensor.name, tensor.dtype, tensor.shape) for tensor in wanted]
            if found != expected:
                raise ValueError(f"expected {key} {expected}, found {found[:3]}")
        inputs = {tensor.name for tensor in self._spec.inputs}
        for name in inputs:
            self._define(name, _IMAGE)
        outside = sum(self._weight(_TENSOR.read(part)) for part in graph["initializer"])
        if (count := len(graph["node"])) > _MAX_NODES:
            raise ValueError(f"expected at most {_MAX_NODES} nodes, found {count}")
        for part in graph["node"]:
            self._node(_NODE.read(part))
        for tensor in self._spec.outputs:
            if self._origins.get(tensor.name) != _IMAGE or tensor.name in inputs:
                raise ValueError(f"no node computes the output {tensor.name!r} from the image")
        return outside

    def _define(self, name: str, origin: str) -> None:
        if not name or name in self._origins:
            raise ValueError(f"expected each value to have a name of its own, found {name!r} again")
        self._origins[name] = origin

    def _weight(self, tensor: dict[str, Any]) -> int:
        """Check a tensor of weights; return its bytes in a file."""
        name, shape = _text(tensor.get("name", b"")), tensor["dims"]
        self._define(name, _WEIGHT)
        if (dtype := _DTYPES.get(tensor.get("data_type", 0))) is None:
            raise ValueError(f"weight {name!r} of type {tensor.get('data_type')}")
        if len(shape) > MAX_RANK or not all(0 < size <= _MAX_SIZE for size in shape):
            raise ValueError(f"weight {name!r} has an impossible shape: {shape[:9]}")
        inside, entries = tensor.get("raw_data", b""), tensor["external_data"]
        outside = self._outside(name, entries) if entries else 0
        if bool(entries) != (tensor.get("data_location") == _EXTERNAL) or (entries and inside):
            raise ValueError(f"weight {name!r} is both in the graph and in a file")
        if (size := math.prod(shape) * dtype[1]) != len(inside) + outside:
            raise ValueError(
                f"weight {name!r}: expected {size} bytes for {dtype[0]} {shape}, found "
                f"{len(inside) + outside}"
            )
        self._shapes[name] = shape
        if dtype[0] == "int64" and not entries and len(inside) <= 8 * MAX_RANK:
            self._numbers[name] = struct.unpack(f"<{len(inside) // 8}q", inside)
        return outside

    def _outside(self, name: str, entries: list[memoryview]) -> int:
        """Check where a weight is in a file; return its bytes."""
        pairs = [_ENTRY.read(entry) for entry in entries]
        place = {_text(pair.get("key", b"")): _text(pair.get("value", b"")) for pair in pairs}
        file = place.get("location", "")
        if file not in self._weights:
            raise ValueError(
                f"weight {name!r} is taken from {file[:200]!r}, which the manifest does not list "
                f"(expected {', '.join(sorted(self._weights))})"
            )
        numbers = [place.get(key, "") for key in ("offset", "length")]
        if len(place) != len(pairs) or len(place) != 3 or not all(map(_NUMBER.fullmatch, numbers)):
            raise ValueError(f"weight {name!r} has no place in {file}: {str(place)[:200]}")
        offset, length = map(int, numbers)
        if offset + length > self._weights[file]:
            raise ValueError(
                f"weight {name!r} is beyond the end of {file}: expected at most "
                f"{self._weights[file]} bytes, found {offset} + {length}"
            )
        return length

    def _node(self, node: dict[str, Any]) -> None:
        kind, name = _text(node.get("op_type", b"")), _text(node.get("name", b""))
        try:
            if (operator := OPERATORS.get(kind)) is None:
                raise ValueError("no export writes this operator")
            inputs = [_text(part) for part in node["input"]]
            _check_attributes(kind, tuple(map(bytes, node["attribute"])))
            outputs = [_text(part) for part in node["output"]]
            if not 1 <= len(outputs) <= operator.outputs:
                raise ValueError(f"expected 1..{operator.outputs} outputs, found {len(outputs)}")
            origin = self._origin(kind, inputs, self._origins_of(inputs, operator), outputs[0])
            for output in outputs:
                self._define(output, origin)
        except ValueError as error:
            raise ValueError(f"node {name!r} ({kind}): {error}") from None

    def _origins_of(self, inputs: list[str], operator: Operator) -> list[str]:
        """Check that a node's inputs are as its operator needs them; return where they come from.

        A backend may crash without an input that it needs.
        """
        if (letters := operator.letters(len(inputs))) is None:
            raise ValueError(f"expected inputs like {operator.inputs!r}, found {len(inputs)}")
        origins = []
        for name, letter in zip(inputs, letters, strict=True):
            if (origin := self._origins.get(name)) is None:
                raise ValueError(f"expected an input that is defined before, found {name!r}")
            if letter == "c" and origin != _WEIGHT:
                raise ValueError(f"expected a weight, found {name!r}, which is {origin}")
            origins.append(origin)
        return origins

    def _origin(self, kind: str, inputs: list[str], origins: list[str], output: str) -> str:
        """Return what a node's output comes from; refuse what grows without an image."""
        if kind == "Shape":
            if inputs[0] != self._spec.inputs[0].name:
                raise ValueError(f"expected the sizes of the image, found those of {inputs[0]!r}")
            self._numbers[output] = (1,)  # the batch; what follows is for each image
            return _SIZES
        if kind == "Concat" and _SIZES in origins and all(i in self._numbers for i in inputs):
            numbers = [number for name in inputs for number in self._numbers[name]]
            self._numbers[output] = tuple(numbers[: MAX_RANK + 1])
            return _SIZES
        if kind == "Expand":
            self._check_expanded(*inputs)
            return _WEIGHTS
        if kind == "Pad" and not all(
            0 <= n <= _MAX_PAD for n in self._numbers.get(inputs[1], (-1,))
        ):
            raise ValueError(f"expected at most {_MAX_PAD} more on each side")
        if kind in ("Cast", "DequantizeLinear") and origins[0] == _WEIGHT:
            if inputs[0] in self._copied:  # each copy takes memory while loading
                raise ValueError(f"expected {inputs[0]!r} to be converted once, found it again")
            self._copied |= {inputs[0], output}
            if kind == "DequantizeLinear":
                return _WEIGHTS
            self._shapes[output] = self._shapes[inputs[0]]
            return _WEIGHT  # as good as the weight itself, in another type
        if _SIZES in origins or _IMAGE not in origins:
            raise ValueError(f"expected an input that comes from the image, found {origins}")
        return _IMAGE

    def _check_expanded(self, name: str, sizes: str) -> None:
        old, new = self._shapes[name], self._numbers.get(sizes, ())
        pairs = itertools.zip_longest(reversed(old), reversed(new), fillvalue=1)
        self._expanded += math.prod(max(pair) for pair in pairs)
        if not new or len(new) > MAX_RANK or self._expanded > _MAX_EXPANDED:
            raise ValueError(
                f"expected at most {_MAX_EXPANDED} elements in the whole graph, found {old} as "
                f"{new}, with those before {self._expanded}"
            )


@lru_cache(maxsize=256)  # a graph has many nodes, and few ways to write their attributes
def _check_attributes(kind: str, attributes: tuple[bytes, ...]) -> None:
    operator, seen = OPERATORS[kind], set()
    for part in attributes:
        attribute = _ATTRIBUTE.read(memoryview(part))
        name = _text(attribute.get("name", b""))
        rule = operator.attributes.get(name)
        type, key = _VALUES.get(attribute.get("type", 0), ("", ""))
        values = {key for key in ("f", "i", "s", "ints") if attribute.get(key, []) != []}
        value = attribute.get(key)
        if rule is None or name in seen or type != rule.type or values - {key} or value is None:
            raise ValueError(f"expected {rule or 'no such attribute'}, found {name!r} of {type}")
        seen.add(name)
        if type == "FLOAT":
            (value,) = struct.unpack("<f", value)
        elif type == "STRING":
            value = _text(value)
        else:
            value = [_signed(v) for v in value] if type == "INTS" else _signed(value)
        if not rule.takes(value):
            raise ValueError(f"expected {name} as {rule}, found {str(value)[:100]}")
    for name, rule in operator.attributes.items():
        if rule.needed and name not in seen:
            raise ValueError(f"expected {name} as {rule}, found none")


def _described(value: dict[str, Any]) -> tuple[str, str, tuple[int, ...]]:
    """Return name, dtype and shape of an input or output, as in a ``TensorSpec``."""
    nothing = memoryview(b"")
    kind = _TENSOR_TYPE.read(_TYPE.read(value.get("type", nothing)).get("tensor", nothing))
    sizes = [_DIM.read(part) for part in _SHAPE.read(kind.get("shape", nothing))["dim"]]
    dtype = _DTYPES.get(kind.get("elem_type", 0), ("another type", 0))[0]
    if any(len(size) > 1 for size in sizes):  # of two the last counts, which is not known here
        raise ValueError("expected a number or a name for each size, found both")
    shape = tuple(-1 if "dim_param" in size else size.get("dim_value", 0) for size in sizes)
    return _text(value.get("name", b"")), dtype, shape


def _text(data: memoryview | bytes) -> str:
    if len(data) <= _MAX_TEXT:
        text = str(data, "utf-8")
        if text.isprintable():
            return text
    raise ValueError(f"expected a short printable text, found {bytes(data[:100])!r}")


def _signed(number: int) -> int:
    return number - (number >> 63 << 64)


def _span(numbers: range) -> str:
    return f"{numbers[0]}..{numbers[-1]}"
