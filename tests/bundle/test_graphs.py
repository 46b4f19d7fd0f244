"""Graphs that a stranger wrote: refused before a backend reads them, with node and reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
from bundles import list_again
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from lgvit_edge.bundle.directory import open_bundle, weights_of
from lgvit_edge.bundle.graphs import check_graph
from lgvit_edge.bundle.operators import OPERATORS, Attribute, Operator, register_operator
from lgvit_edge.bundle.protobuf import BYTES, FIXED32, VARINT, Message
from lgvit_edge.errors import BundleError, ExportError, UsageError
from lgvit_edge.export import ExportOptions, build_engines, export_bundle
from lgvit_edge.model import LGViT
from lgvit_edge.runtime import Session

Change = Callable[[ModelProto], Any]


@pytest.fixture(scope="module")
def checked(bundle: Path) -> Callable[[bytes], int]:
    """Check what would be the first segment of the bundle; it makes class tokens for a batch."""
    manifest = open_bundle(bundle, verify=False).manifest
    spec = manifest.graphs[0]
    weights = weights_of(manifest.weights, spec)
    return lambda data: check_graph(data, spec, manifest.opset, weights)


@pytest.fixture(scope="module")
def exported(bundle: Path) -> bytes:
    return (bundle / "segments" / "segment_0.onnx").read_bytes()


def node(model: ModelProto, kind: str) -> NodeProto:
    return next(node for node in model.graph.node if node.op_type == kind)


def weight(model: ModelProto, name: str, values: Any, dtype: str = "int64") -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.array(values, dtype), name))
    return name


def outside(model: ModelProto, **places: str) -> None:
    """Change where the first weight of a file is."""
    tensor = next(t for t in model.graph.initializer if t.external_data)
    for entry in tensor.external_data:
        entry.value = places.get(entry.key, entry.value)


def add(model: ModelProto, kind: str, inputs: list[str], *outputs: str, **attributes: Any) -> None:
    """Put a node before all others."""
    model.graph.node.insert(0, helper.make_node(kind, inputs, outputs or ["new"], **attributes))


def attribute(model: ModelProto, kind: str, **attributes: Any) -> None:
    changed = node(model, kind)
    kept = [a for a in changed.attribute if a.name not in attributes]
    del changed.attribute[:]
    changed.attribute.extend([*kept, *(helper.make_attribute(k, v) for k, v in attributes.items())])


def giant(model: ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.dims[:] = [2**31, 2**31]


def branch(model: ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [])
    add(model, "If", ["image"], then_branch=inner, else_branch=inner)


def without(model: ModelProto, kind: str, name: str) -> None:
    changed = node(model, kind)
    kept = [a for a in changed.attribute if a.name != name]
    del changed.attribute[:]
    changed.attribute.extend(kept)


def from_file(model: ModelProto, name: str, count: int) -> str:
    """Numbers that stand in the file of weights."""
    tensor = model.graph.initializer.add(name=name, data_type=TensorProto.INT64, dims=[count])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", str(8 * count))):
        tensor.external_data.add(key=key, value=value)
    return name


def sized_by_a_file(model: ModelProto) -> None:
    concat = next(n for n in model.graph.node if n.output[0] == node(model, "Expand").input[1])
    concat.input[1] = from_file(model, "sizes", 2)


def many_tokens(model: ModelProto) -> None:
    """Each of them may be."""
    grown(2**18, 32)(model)
    for i in range(2):
        copy = NodeProto()
        copy.CopyFrom(node(model, "Expand"))
        copy.output[0] = f"copy {i}"
        model.graph.node.append(copy)


def cast(*names: str) -> Change:
    """Cast weights, and what was cast."""

    def change(model: ModelProto) -> None:
        weight(model, "w", [1.0], "f2")
        for i, name in reversed(list(enumerate(names))):
            add(model, "Cast", [name], f"copy {i}", to=1)

    return change


def dequantized_twice(model: ModelProto) -> None:
    inputs = [
        weight(model, "q", [1], "i1"),
        weight(model, "s", 1, "f4"),
        weight(model, "z", 0, "i1"),
    ]
    for output in ("a", "b"):
        add(model, "DequantizeLinear", inputs, output)


def grown(*sizes: int) -> Change:
    """Class tokens of these sizes."""

    def change(model: ModelProto) -> None:
        concat = next(n for n in model.graph.node if n.output[0] == node(model, "Expand").input[1])
        batch = next(n.output[0] for n in model.graph.node if n.op_type == "Shape")
        concat.input[:] = [batch, weight(model, "sizes", sizes)]

    return change


FAULTS: dict[str, tuple[Change, str]] = {
    # Operators and attributes.
    "loop": (lambda m: add(m, "Loop", ["image"]), r"node '' \(Loop\): no export writes this"),
    "branches": (branch, r"node '' \(If\): no export writes this operator"),
    "scan": (lambda m: add(m, "Scan", ["image"]), "no export writes this operator"),
    "constant": (lambda m: add(m, "ConstantOfShape", ["image"]), "no export writes this operator"),
    "range": (lambda m: add(m, "Range", ["image"]), "no export writes this operator"),
    "tile": (lambda m: add(m, "Tile", ["image"]), "no export writes this operator"),
    "domain": (lambda m: setattr(node(m, "Add"), "domain", "com.microsoft"), "node: field 7"),
    "own domain": (
        lambda m: m.opset_import.add(domain="own", version=1),
        "expected operator set 18 of ONNX, among 17..23, found",
    ),
    "other opset": (lambda m: setattr(m.opset_import[0], "version", 23), r"found \[\('', 23\)\]"),
    "other IR": (lambda m: setattr(m, "ir_version", 99), r"expected ir_version 8\.\.13, found 99"),
    "functions": (lambda m: m.functions.add(name="f", domain="d"), "model: field 25"),
    "training": (lambda m: m.training_info.add(), "model: field 20"),
    "sparse": (lambda m: m.graph.sparse_initializer.add(), "graph: field 15"),
    "shapes that lie": (
        lambda m: m.graph.value_info.add(name="new"),
        "graph: field 13 of type 2, which no export writes",
    ),
    "unknown attribute": (
        lambda m: attribute(m, "LayerNormalization", new=1),
        r"\(LayerNormalization\): expected no such attribute, found 'new' of INT",
    ),
    "attribute of another type": (
        lambda m: attribute(m, "Softmax", axis=-1.0),
        r"expected INT of -1\.\.-1, found 'axis' of FLOAT",
    ),
    "attribute twice": (
        lambda m: node(m, "Softmax").attribute.append(node(m, "Softmax").attribute[0]),
        "found 'axis' of INT",
    ),
    "two values": (lambda m: setattr(node(m, "Softmax").attribute[0], "f", 1.0), "found 'axis'"),
    "no value": (lambda m: node(m, "Softmax").attribute[0].ClearField("i"), "found 'axis' of INT"),
    "graph as value": (
        lambda m: attribute(m, "Softmax", axis=helper.make_graph([], "g", [], [])),
        "attribute: field 6",
    ),
    "strings": (lambda m: attribute(m, "Softmax", axis=["a"]), "attribute: field 9"),
    "tensor as value": (
        lambda m: attribute(m, "Softmax", axis=TensorProto()),
        "attribute: field 5",
    ),
    "large axis": (
        lambda m: attribute(m, "Softmax", axis=2**40),
        r"expected axis as INT of -1\.\.-1, found 1099511627776",
    ),
    "NaN": (
        lambda m: attribute(m, "LayerNormalization", epsilon=float("nan")),
        r"expected epsilon as FLOAT of 0\.\.1, found nan",
    ),
    "cast to text": (lambda m: attribute(m, "Cast", to=8), "expected to as INT of 1, 10, found 8"),
    "giant padding": (lambda m: attribute(m, "Conv", pads=[2**30] * 4), "expected pads as INTS of"),
    "endless attribute": (
        lambda m: attribute(m, "Conv", pads=[1] * 1000),
        "expected pads as INTS of",
    ),
    # Inputs and outputs.
    "emptied input": (
        lambda m: node(m, "LayerNormalization").input.__setitem__(2, ""),
        r"\(LayerNormalization\): expected an input that is defined before, found ''",
    ),
    "missing input": (lambda m: node(m, "Add").input.pop(), "inputs like 'xx', found 1"),
    "too many inputs": (lambda m: node(m, "Softmax").input.append("image"), "like 'x', found 2"),
    "undefined": (lambda m: add(m, "Softmax", ["nobody"]), "defined before, found 'nobody'"),
    "later": (lambda m: add(m, "Softmax", ["logits"]), "defined before, found 'logits'"),
    "circle": (lambda m: add(m, "Softmax", ["new"]), "defined before, found 'new'"),
    "twice": (lambda m: add(m, "Softmax", ["image"], "image"), "found 'image' again"),
    "two outputs": (lambda m: add(m, "Softmax", ["image"], "a", "b"), r"expected 1\.\.1 outputs"),
    "no output": (lambda m: node(m, "Softmax").output.pop(), "outputs, found 0"),
    "computed shape": (
        lambda m: node(m, "Reshape").input.__setitem__(1, "image"),
        "expected a weight, found 'image', which is the image",
    ),
    "other input": (lambda m: setattr(m.graph.input[0], "name", "x"), "expected input .*'image'"),
    "other shape": (
        lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 9),
        r"expected input .*32, 32, 3.*found .*9, 32, 3",
    ),
    "other type": (
        lambda m: setattr(m.graph.output[1].type.tensor_type, "elem_type", TensorProto.STRING),
        "expected output .*'float32'.*found .*another type",
    ),
    "one more input": (lambda m: m.graph.input.add(name="x"), "expected input"),
    "no nodes": (lambda m: m.graph.ClearField("node"), "no node computes the output 'hidden_out'"),
    "endless": (
        lambda m: m.graph.node.extend([node(m, "Add")] * 20_001),
        "expected at most 20000 nodes",
    ),
    # Weights.
    "giant weight": (giant, r"has an impossible shape|expected \d{19,} bytes"),
    "empty weight": (lambda m: weight(m, "w", []), "'w' has an impossible shape"),
    "short weight": (
        lambda m: setattr(next(t for t in m.graph.initializer if t.raw_data), "raw_data", b"\0"),
        r"expected \d+ bytes for \w+ \[.*\], found 1",
    ),
    "text": (lambda m: m.graph.initializer.add(name="w", data_type=8, dims=[1]), "of type 8"),
    "typed data": (
        lambda m: m.graph.initializer.add(name="w", data_type=1, dims=[1]).float_data.append(1),
        "tensor: field 4",
    ),
    "weight twice": (
        lambda m: m.graph.initializer.append(m.graph.initializer[0]),
        "a name of its own, found .* again",
    ),
    "other file": (
        lambda m: outside(m, location="../parity.npz"),
        r"taken from '../parity.npz', which the manifest does not list \(expected weights.bin\)",
    ),
    "beyond the file": (lambda m: outside(m, offset="999999999"), "is beyond the end of weights"),
    "before the file": (lambda m: outside(m, offset="-4"), "has no place in weights.bin"),
    "two places": (
        lambda m: next(t for t in m.graph.initializer if t.external_data).external_data.add(
            key="offset", value="0"
        ),
        "has no place in weights.bin",
    ),
    "inside and outside": (
        lambda m: setattr(
            next(t for t in m.graph.initializer if t.external_data), "raw_data", b"\0"
        ),
        "is both in the graph and in a file",
    ),
    # What a backend would compute while it loads.
    "weights alone": (
        lambda m: add(m, "Add", [weight(m, "a", [1.0], "f4"), "a"]),
        "expected an input that comes from the image",
    ),
    "giant tokens": (grown(2**20, 2**20), r"expected at most 16777216 elements in the whole"),
    "many tokens": (many_tokens, r"expected at most 16777216 elements .* before 25165824"),
    "tokens sized by a file": (sized_by_a_file, "expected an input that comes from the image"),
    "dequantized twice": (dequantized_twice, "expected 'q' to be converted once"),
    "cast twice": (cast("w", "w"), "expected 'w' to be converted once"),
    "cast again": (cast("w", "copy 0"), "expected 'copy 0' to be converted once"),
    "all sizes": (
        lambda m: without(m, "Shape", "end"),
        r"\(Shape\): expected end as INT of 1\.\.1, found none",
    ),
    "endless tokens": (grown(*[1] * 8), "expected at most 16777216 elements"),
    "from another size": (
        lambda m: node(m, "Shape").input.__setitem__(0, m.graph.initializer[0].name),
        "expected the sizes of the image",
    ),
    "padded to fill memory": (
        lambda m: add(m, "Pad", ["image", weight(m, "p", [2**40] * 8)]),
        "expected at most 4096 more on each side",
    ),
    "padded by a file": (
        lambda m: add(m, "Pad", ["image", from_file(m, "p", 8)]),
        "expected at most 4096 more on each side",
    ),
    # Names.
    "steered terminal": (lambda m: setattr(node(m, "Add"), "name", "\x1b[2J"), "printable text"),
    "endless name": (lambda m: setattr(node(m, "Add"), "name", "n" * 1001), "a short printable"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_no_export_writes(
    checked: Callable[[bytes], int], exported: bytes, fault: str
) -> None:
    change, message = FAULTS[fault]
    model = onnx.load_from_string(exported)
    change(model)
    with pytest.raises(ValueError, match=message) as refused:
        checked(model.SerializeToString())
    assert len(str(refused.value)) < 1500
    assert checked(exported) > 0


def test_no_value_is_without_effect(checked: Callable[[bytes], int], exported: bytes) -> None:
    """Every byte that is cut off, and every field that is given twice, is noticed."""
    for end in range(0, len(exported), 97):
        with pytest.raises(ValueError, match=r"cut off|expected|computes|defined|weight|place"):
            checked(exported[:end])
    model = onnx.load_from_string(exported)
    twice = ModelProto(graph=model.graph)
    with pytest.raises(ValueError, match="model: two values of graph"):
        checked(exported + twice.SerializeToString())  # other readers merge the two


READER = Message("note", ("text", 1, BYTES), ("number*", 2, VARINT), ("real", 3, FIXED32))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        *[(b"\xff" * 30, "more than 64"), (b"\x0a\xff\x01", "cut off"), (b"\x0a", "cut off")],
        *[(b"\x1d\0\0\0", "cut off"), (b"\x10", "cut off"), (b"\x10\x80", "cut off")],
        *[(b"\x0b", "field 1 of type 3"), (b"\x09" + b"\0" * 8, "field 1 of type 1")],
        *[(b"\x12\x01\0", "field 2 of type 2"), (b"\x0a\0\x0a\0", "two values of text")],
        (b"\x8a\x80\x80\x80\x80\x01\x00", "field 4294967297"),
        (b"\x10" + b"\xff" * 9 + b"\x02", "more than 64 bits"),
        (b"\x10\x01" * (2**16 + 1), "note: more than 65536 values of number"),
    ],
)
def test_what_is_no_message(content: bytes, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        READER.read(memoryview(content))


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | BYTES, len(content)]) + content


def test_a_size_that_is_also_a_name() -> None:
    """Readers take the last of the two; ONNX's own does not even write both."""
    size = b"\x08\x20"  # 32
    value = [
        field(1, b"image") + field(2, field(1, b"\x08\x01" + field(2, field(1, dim))))
        for dim in (size, size + field(2, b"N"))
    ]
    model = [
        field(7, field(11, content)) + b"\x08\x08" + field(8, field(1, b"") + b"\x10\x12")
        for content in value
    ]
    spec = mock.Mock(inputs=(), outputs=())
    with pytest.raises(ValueError, match=r"expected input \[\], found .*32"):
        check_graph(model[0], spec, 18, {})
    with pytest.raises(ValueError, match="expected a number or a name for each size, found both"):
        check_graph(model[1], spec, 18, {})


def test_a_message_is_read() -> None:
    content = b"\x0a\x02ab\x10\x01\x10\x96\x01\x1d\0\0\x80\x3f"
    found = READER.read(memoryview(content))
    assert found == {"text": b"ab", "number": [1, 150], "real": b"\0\0\x80\x3f"}
    assert READER.read(memoryview(b"")) == {"number": []}


def crashes(model: ModelProto) -> None:
    node(model, "LayerNormalization").input[2] = ""


@pytest.mark.parametrize("file", ["segments/segment_1.onnx", "baseline.onnx"])
def test_no_backend_reads_what_crashes_it(bundle_copy: Path, file: str) -> None:
    """ONNX Runtime ended with a segmentation fault."""
    model = onnx.load(bundle_copy / file, load_external_data=False)
    crashes(model)
    (bundle_copy / file).write_bytes(model.SerializeToString())
    list_again(bundle_copy)
    message = rf"{file} is no graph that lgvit-edge exports: node '.+' \(LayerNorm.*export it again"
    for use in (Session.open, build_engines):
        with pytest.raises(BundleError, match=message):
            use(bundle_copy)


def test_the_same_weights_over_and_over(bundle_copy: Path) -> None:
    """Each segment may take all of a file; a thousand of them may not."""
    file = bundle_copy / "segments" / "segment_1.onnx"
    model = onnx.load(file, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.external_data)
    length = int(next(e.value for e in tensor.external_data if e.key == "length"))
    for i in range(2**26 // length * 2):
        model.graph.initializer.add().CopyFrom(tensor)
        model.graph.initializer[-1].name = f"again {i}"
    file.write_bytes(model.SerializeToString())
    list_again(bundle_copy)
    with pytest.raises(BundleError, match=r"expected at most \d+ bytes of weights, found"):
        open_bundle(bundle_copy)


def test_a_graph_is_bounded(bundle_copy: Path) -> None:
    path = bundle_copy / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["baseline"]["graph"]["bytes"] = 2**24 + 1
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="must be an .onnx file of at most 16 MiB"):
        open_bundle(bundle_copy)


def test_kinds_of_others_allow_their_operators(quick_model: LGViT, tmp_path: Path) -> None:
    with mock.patch.dict(OPERATORS):
        softmax = OPERATORS.pop("Softmax")
        with pytest.raises(ExportError, match=r"segment_0.onnx .* \(Softmax\).*register_operator"):
            export_bundle(quick_model, tmp_path / "out", ExportOptions())
        register_operator("Softmax", softmax)
        export_bundle(quick_model, tmp_path / "out", ExportOptions())
        with pytest.raises(UsageError, match="there is an operator 'Softmax' already"):
            register_operator("Softmax", softmax)
    with pytest.raises(UsageError, match="inputs must be letters x and c"):
        Operator("xy")
    assert str(Attribute("INT", among=(1, 10))) == "INT of 1, 10"
    assert AttributeProto.INTS == 7  # numbers of types do not change
