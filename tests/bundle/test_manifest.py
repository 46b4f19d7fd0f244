"""The manifest: written and read back, and everything a stranger's may try."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import small
from pytest import MonkeyPatch

from lgvit_edge.bundle.codec import from_json, to_json
from lgvit_edge.bundle.manifest import (
    SCHEMA_VERSION,
    Calibration,
    FileSpec,
    GraphSpec,
    Manifest,
    Parity,
    Parts,
    PassSpec,
    SegmentSpec,
    TensorSpec,
)
from lgvit_edge.bundle.points import Guarantee
from lgvit_edge.errors import BundleError
from lgvit_edge.images.spec import Preprocess
from lgvit_edge.policies import Confidence

HASH = "0123456789abcdef" * 4
Data = dict[str, Any]


def graph(name: str, inputs: TensorSpec, *outputs: TensorSpec, macs: int = 100) -> GraphSpec:
    return GraphSpec(FileSpec(name, HASH, 9), (inputs,), outputs, macs=macs, parameters=10)


segment = "segments/segment_{}.onnx".format
IMAGE = TensorSpec("image", "uint8", (-1, 32, 32, 3))
HIDDEN, HIDDEN_OUT = (TensorSpec(n, "float32", (-1, 17, 32)) for n in ("hidden", "hidden_out"))
LOGITS = TensorSpec("logits", "float32", (-1, 5))
SEGMENTS = (
    SegmentSpec(
        graph(segment(0), IMAGE, HIDDEN_OUT, LOGITS, macs=100),
        *(1, 2, "lph", 9),
        parts=Parts(*(FileSpec(f"segments/{part}_0.onnx", HASH, 9) for part in ("blocks", "head"))),
    ),
    SegmentSpec(graph(segment(1), HIDDEN, HIDDEN_OUT, LOGITS, macs=20), 3, 3, "gah"),
    SegmentSpec(graph(segment(2), HIDDEN, LOGITS, macs=3), 4, 4, "final"),
)
MANIFEST = Manifest(
    **dict(schema_version=SCHEMA_VERSION, input="uint8"),
    **dict(labels=("a", "b", "c", "d", "é"), batch=(1, 2, 4)),
    passes=(PassSpec("vit", 32, Preprocess(resize=36), SEGMENTS),),
    baseline=graph("baseline.onnx", IMAGE, LOGITS),
    published_macs=110,
    weights=(FileSpec("segments/weights.bin", HASH, 9),),
    parity=Parity(FileSpec("parity.npz", HASH, 9), 1e-4, (1e-6, 2e-6, 3e-6)),
    policy={"name": "confidence", "threshold": 0.8},
    versions={"lgvit-edge": "0.1.0"},
    **dict(precision="fp32", opset=18, target="cpu", fp32_islands=()),
    **dict(calibration=None, agreement=None, points={}, plain_models={}),
)


# Sixteen pixels and three blocks with one exit, then MANIFEST's network.
SMALL = TensorSpec("image", "uint8", (-1, 16, 16, 3))
NARROW, NARROW_OUT = (TensorSpec(n, "float32", (-1, 5, 8)) for n in ("hidden", "hidden_out"))
COARSE = PassSpec(
    "deit",
    16,
    Preprocess(resize=18),
    (
        SegmentSpec(graph("segments/a.onnx", SMALL, NARROW_OUT, LOGITS, macs=7), 1, 2, "mlp", 2),
        SegmentSpec(graph("segments/b.onnx", NARROW, LOGITS, macs=2), 3, 3, "final"),
    ),
)
TWO = dataclasses.replace(
    MANIFEST,
    passes=(COARSE, *MANIFEST.passes),
    parity=dataclasses.replace(MANIFEST.parity, max_difference=(0.0,) * 5),
)


@pytest.fixture
def data() -> Data:
    return json.loads(MANIFEST.dumps())  # type: ignore[no-any-return]


def loads(data: object) -> Manifest:
    return Manifest.loads(json.dumps(data))


def test_round_trip() -> None:
    text = MANIFEST.dumps()
    assert Manifest.loads(text) == MANIFEST
    assert Manifest.loads(text.encode()) == MANIFEST
    assert Manifest.loads(text).dumps() == text
    assert '"é"' in text  # labels stay readable


def test_what_it_says_about_the_chain() -> None:
    assert (MANIFEST.num_classes, MANIFEST.passes[0].num_blocks) == (5, 4)
    assert (MANIFEST.begins, MANIFEST.pass_numbers) == ((0, None, None), (1, 1, 1))
    assert [MANIFEST.cumulative_macs(exit) for exit in (1, 2, 3)] == [100, 120, 123]
    assert MANIFEST.head_macs_apart == (9, 0)
    assert MANIFEST.segments[0].part_graphs == (
        (FileSpec("segments/blocks_0.onnx", HASH, 9), (IMAGE,), (HIDDEN_OUT,)),
        (FileSpec("segments/head_0.onnx", HASH, 9), (HIDDEN_OUT,), (LOGITS,)),
    )
    others = ("baseline.onnx", "segments/blocks_0.onnx", "segments/head_0.onnx")
    others += ("segments/weights.bin", "parity.npz")
    assert [spec.file for spec in MANIFEST.files()] == [*map(segment, range(3)), *others]
    assert HIDDEN.for_batch(3) == (3, 17, 32)
    assert MANIFEST.segments[0].spec.logits == LOGITS


def test_exits_macs_and_blocks_are_counted_through_all_passes() -> None:
    assert Manifest.loads(TWO.dumps()) == TWO
    assert [segment.last_block for segment in TWO.segments] == [2, 3, 2, 3, 4]
    assert (TWO.begins, TWO.pass_numbers) == ((0, None, 1, None, None), (1, 1, 2, 2, 2))
    assert [TWO.cumulative_macs(exit) for exit in range(1, 6)] == [7, 9, 109, 129, 132]
    assert [TWO.cumulative_blocks(exit) for exit in range(1, 6)] == [2, 3, 5, 6, 7]
    assert [TWO.pass_title(n) for n in (1, 2)] == ["pass 1 (16 px)", "pass 2 (32 px)"]
    assert [(view.size, view.dtype) for view in TWO.views] == [(16, "uint8"), (32, "uint8")]
    assert TWO.identity != MANIFEST.identity


def test_int8_blocks_are_counted_in_their_own_pass() -> None:
    blocks = ((3,), (1,))
    some = dataclasses.replace(TWO, calibration=Calibration(8, HASH, "max", blocks))
    assert [some.quantized(i) for i in range(5)] == [False, True, True, False, False]
    assert some.quantized(None)
    with pytest.raises(ValueError, match="calibration must list blocks of each pass"):
        dataclasses.replace(TWO, calibration=Calibration(8, HASH, "max", blocks[:1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["passes"].reverse(), "each pass and the baseline must take images as"),
        (lambda d: d["passes"][0].update(image_size=17), "each pass and the baseline must take"),
        (lambda d: d["passes"][0].update(image_size=19), r"passes\[0\]: image_size must fit"),
        (lambda d: d["passes"][0].update(segments=[]), r"passes\[0\]: expected at least one seg"),
        (lambda d: d["passes"][0]["segments"].pop(), r"passes\[0\]: each segment's hidden"),
        (lambda d: d["passes"][1]["segments"].pop(0), r"passes\[1\]: segments must cover blocks"),
        (lambda d: d["passes"].append(d["passes"][1]), "each file must be listed once"),
        (lambda d: d["passes"].pop(0), "parity must have one max_difference per segment"),
        (lambda d: d["passes"].clear(), "expected at least one pass"),
    ],
)
def test_passes_that_do_not_fit_together(change: Callable[[Data], object], message: str) -> None:
    data = json.loads(TWO.dumps())
    change(data)
    with pytest.raises(BundleError, match=message):
        loads(data)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_are_finite(number: str) -> None:
    for key in ('"tolerance": 0.0001', '"threshold": 0.8', '"max_difference": [\n   1e-06'):
        text = MANIFEST.dumps()
        assert key in text
        with pytest.raises(BundleError, match="manifest is not JSON: expected finite numbers"):
            Manifest.loads(text.replace(key, key.rpartition(" ")[0] + number))
    parity = dataclasses.replace(MANIFEST.parity, tolerance=float(number))
    with pytest.raises(ValueError, match="not JSON compliant"):
        dataclasses.replace(MANIFEST, parity=parity).dumps()
    with pytest.raises(BundleError, match="parity.tolerance: expected a finite number"):
        from_json(Parity, to_json(parity), where="parity", error=BundleError)


@pytest.mark.parametrize("version", [None, 0, 1, 5, 6, 7, 99, "2", [1], {"v": 1}, -1])
def test_unknown_schema_versions_are_refused(data: Data, version: object) -> None:
    data["schema_version"] = version
    data["from the future"] = True  # an unknown version is the first thing to say
    with pytest.raises(BundleError, match="expected schema version 9, found .*pip insta"):
        loads(data)


def test_a_manifest_without_a_version(data: Data) -> None:
    with pytest.raises(BundleError, match="manifest.schema_version: expected a whole number"):
        loads(data | {"schema_version": 9.0})
    del data["schema_version"]
    for value in (data, {}, [], "manifest", None, 3):
        with pytest.raises(BundleError, match="schema version 9, found None"):
            loads(value)


@pytest.mark.parametrize(
    "text",
    ["", "{", "{'a': 1}", "nothing", b"\xff\xfe\x00", b"\x80abc", "[" * 200_000, '{"a":' * 200_000],
)
def test_text_that_is_not_json(text: str | bytes) -> None:
    with pytest.raises(BundleError, match="manifest is not JSON"):
        Manifest.loads(text)


def test_a_manifest_that_is_too_large() -> None:
    with pytest.raises(BundleError, match="has more than the 16777216 bytes it may have"):
        Manifest.loads(b" " * 17_000_000)


@pytest.mark.parametrize(
    "name",
    [
        *["../evil.onnx", "segments/../../evil.onnx", "..", "segments/..", "a/../b"],
        *["/etc/passwd", "//host/share", "/", "", ".", "./a", "a//b", "a/", "a/./b"],
        *["..\\evil", "segments\\a.onnx", "C:/evil", "C:evil", "file:///etc/passwd"],
        *["a\0b", "a\nb", "\x1b[2J"],
    ],
)
def test_names_that_could_leave_the_bundle(data: Data, name: str) -> None:
    with pytest.raises(ValueError, match="must be relative and stay in the bundle"):
        FileSpec(name, HASH, 9)
    for path in (
        *(("passes", 0, "segments", 1, "spec", "graph"), ("baseline", "graph")),
        *(("weights", 0), ("parity", "samples")),
    ):
        hostile = changed(data, (*path, "file"), name)
        with pytest.raises(BundleError, match="must be relative and stay in the bundle"):
            loads(hostile)


def test_names_that_stay() -> None:
    for name in ("a", "segments/segment_0.onnx", "engines/x-y_1.2/a..b", ".hidden", "...", "ä"):
        assert FileSpec(name, HASH, 9).file == name


@pytest.mark.parametrize("value", ["", "0" * 63, "0" * 65, "g" * 64, "A" * 64, HASH + "\n"])
def test_hashes_that_are_none(data: Data, value: str) -> None:
    data["baseline"]["graph"]["sha256"] = value
    with pytest.raises(BundleError, match="sha256 of 'baseline.onnx' must be 64 hexadecimal dig"):
        loads(data)


def test_a_file_that_is_listed_twice(data: Data) -> None:
    """It would be read and hashed as often, and count as weights as often."""
    for again in (data["weights"][0], data["baseline"]["graph"], data["parity"]["samples"]):
        with pytest.raises(BundleError, match="each file must be listed once"):
            loads(data | {"weights": [*data["weights"], again]})


def test_all_faults_are_reported_together(data: Data) -> None:
    del data["opset"]
    data |= dict(evil=1, labels="abcde", batch=[1, 4])
    segments = data["passes"][0]["segments"]
    segments[0]["spec"]["graph"]["command"] = "rm"
    segments[1]["first_block"] = "3"
    data["baseline"]["macs"] = 1.5
    data["versions"]["torch"] = 2.13
    with pytest.raises(BundleError) as caught:
        loads(data)
    assert set(str(caught.value).split("; ")) == {
        *("manifest: unknown key 'evil'", "manifest: missing key 'opset'"),
        "manifest.labels: expected a list, found 'abcde'",
        "manifest.batch: expected a list of 3, found [1, 4]",
        "manifest.passes[0].segments[0].spec.graph: unknown key 'command'",
        "manifest.passes[0].segments[1].first_block: expected a whole number, found '3'",
        "manifest.baseline.macs: expected a whole number, found 1.5",
        "manifest.versions.torch: expected a string, found 2.13",
    }


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything in the manifest, containers too; the policy is free-form."""
    items: Any = enumerate(value) if isinstance(value, list) else ()
    if isinstance(value, dict) and path[:1] != ("policy",):
        items = value.items()
    return [path] * bool(path) + [leaf for k, v in items for leaf in leaves(v, (*path, k))]


GONE = object()


def changed(data: Data, path: tuple[Any, ...], value: Any) -> Data:
    """A copy with another value at this place, or nothing there."""
    at = hostile = copy.deepcopy(data)
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    if value is GONE:
        del at[path[-1]]
    return hostile


POISON: list[Any] = [
    *[None, True, -1, 0, 1.5, 10**30, 10**400, "", "x", "../x", [], {}, [[]], [None], {"a": 1}],
    *[[-1], [0] * 5, "\ud800", float("nan"), float("inf"), 1e-300],
]


def test_any_value_anywhere_is_taken_or_refused(data: Data) -> None:
    """Nothing but our own error, whatever stands where, and refusals name their place."""
    for path in leaves(data):
        if path[:4] in (("passes", 0, "segments", 0), ("passes", 0, "segments", 2)):
            continue  # as segment 1
        for poison in POISON:
            try:
                loads(changed(data, path, poison))
            except BundleError as error:
                assert str(error).startswith("manifest")


def test_only_a_segment_with_a_head_has_parts(data: Data) -> None:
    head, final = data["passes"][0]["segments"][0], data["passes"][0]["segments"][-1]
    assert head["parts"] is not None and final["parts"] is None
    final["parts"] = head["parts"]
    with pytest.raises(BundleError, match="only a segment with a head of its own has parts"):
        loads(data)
    final["parts"] = None
    head["parts"]["head"]["file"] = "segments/head_0.xml"
    with pytest.raises(BundleError, match=r"'segments/head_0\.xml' must be an \.onnx file"):
        loads(data)


def test_every_missing_key_is_named(data: Data) -> None:
    for path in leaves(data):
        if isinstance(path[-1], int) or path[0] in ("versions", "schema_version"):
            continue
        if path[-2:-1] == ("preprocess",) or path[-1] in (
            "points",
            "head_macs",
            "parts",
            "evidence",
        ):
            continue  # those have defaults
        with pytest.raises(BundleError, match=f"missing key '{path[-1]}'"):
            loads(changed(data, path, GONE))


def cut(data: Data) -> list[Any]:
    return data["passes"][0]["segments"]  # type: ignore[no-any-return]


def taken(data: Data, segment: int) -> Data:
    return cut(data)[segment]["spec"]["inputs"][0]  # type: ignore[no-any-return]


def made(data: Data, segment: int) -> Data:
    return cut(data)[segment]["spec"]["outputs"][0]  # type: ignore[no-any-return]


def sizes(data: Data) -> Data:
    return data["passes"][0]["preprocess"]  # type: ignore[no-any-return]


def whole(data: Data) -> Data:
    return data["baseline"]["outputs"][0]  # type: ignore[no-any-return]


SAME = "segments and baseline must have the same classes"
FLOAT = r"logits must be float32 \[B, C\]"
ONE = "a graph has one input and one or two outputs"
BATCH = r"batch must be MIN <= OPT <= MAX, MIN 1: \(2, 1, 4\)"
FIT = "each segment's hidden output must be the next one's input"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: taken(d, 1).update(shape=[-1, 18, 32]), FIT),
        (lambda d: taken(d, 1).update(dtype="float16"), FIT),
        (lambda d: made(d, 0).update(shape=[-1, 17, 31]), FIT),
        (lambda d: taken(d, 0).update(shape=[-1, 64, 64, 3]), "must take images as the manifest"),
        (lambda d: cut(d).pop(), FIT),  # the last still hands a hidden state on
        (lambda d: cut(d).pop(1) and cut(d).pop(0), "segments must cover blocks"),
        (lambda d: cut(d).append(cut(d)[2]), FIT),
        (lambda d: cut(d).reverse(), FIT),
        (lambda d: d["passes"][0].update(segments=[]), "expected at least one segment"),
        (lambda d: d.update(passes=d["passes"] * 334), "expected 1 to 1000 segments"),
        (lambda d: made(d, 2).update(shape=[-1, 6]), SAME),
        (lambda d: whole(d).update(shape=[-1, 6]), f"{SAME}; .*expected 6 labels, found 5"),
        (lambda d: whole(d).update(dtype="float16"), f"manifest.baseline: {FLOAT}"),
        (lambda d: whole(d).update(shape=[-1, 5, 1]), FLOAT),
        (lambda d: d["baseline"].update(inputs=[]), ONE),
        (lambda d: d["baseline"].update(outputs=[whole(d)] * 3), ONE),
        (lambda d: d["baseline"].update(macs=0), "macs and parameters must be counts"),
        (lambda d: d["baseline"].update(parameters=-1), "macs and parameters must be counts"),
        (lambda d: d.update(labels=["a"]), "expected 5 labels, found 1"),
        (lambda d: d.update(published_macs=0), "published_macs must be a count, found 0"),
        (lambda d: d.update(input="int8"), "input must be uint8 or float32: 'int8'"),
        (lambda d: d.update(target="tpu"), "target must be one of .*: 'tpu'"),
        (lambda d: d.update(batch=[2, 1, 4]), BATCH),
        (lambda d: d.update(batch=[0, 1, 1]), "batch must be MIN"),
        (lambda d: d.update(batch=[1, 1, 10**6]), "batch must be MIN"),
        (lambda d: d["passes"][0].update(image_size=40), "image_size must fit resize"),
        (lambda d: d["passes"][0].update(image_size=0), "image_size must fit resize"),
        (lambda d: sizes(d).update(resize=0), r"passes\[0\].preprocess: resize must be 1\.\."),
        (lambda d: sizes(d).update(interpolation="x"), "interpolation must be one of"),
    ],
)
def test_manifests_that_contradict_themselves(
    data: Data, change: Callable[[Data], object], message: str
) -> None:
    change(data)
    with pytest.raises(BundleError, match=message):
        loads(data)


SHAPES = [[], [0], [-2, 5], [5, -1], [-1, -1], [-1, 0], [-1, 2**40], [-1, 2**16, 2**16]]


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        *[(shape, "uint8", "tensor 'image' has an impossible shape") for shape in SHAPES],
        ([-1, 32, 32, 3], "object", "one of uint8, float16, float32, found 'object'"),
    ],
)
def test_impossible_tensors(data: Data, shape: list[int], dtype: str, message: str) -> None:
    data["baseline"]["inputs"][0] |= {"shape": shape, "dtype": dtype}
    with pytest.raises(BundleError, match=message):
        loads(data)


def test_a_shape_whose_size_takes_forever_to_compute(data: Data, monkeypatch: MonkeyPatch) -> None:
    data["baseline"]["inputs"][0]["shape"] = [10**150] * 4_000
    text = json.dumps(data)
    product = math.prod
    computed: list[int] = []  # how many sides, of every tensor up to that one
    monkeypatch.setattr(
        math, "prod", lambda sides: (computed.append(len(sides)), product(sides))[1]
    )
    with pytest.raises(BundleError, match="has an impossible shape"):
        Manifest.loads(text)
    assert max(computed, default=0) <= 8


POINT = small.point(
    Confidence(0.7),
    **dict(accuracy=0.8, baseline_accuracy=0.81, macs=10.0, latency_ms=4.0, device="cpu"),
    **dict(baseline_latency_ms=6.0, shares=(0.5, 0.25, 0.25), goal="--max-drop 0.01"),
    guarantee=Guarantee(0.01, 0.05, 500, 1, "1" * 64),
)


def test_operating_points_are_kept_and_change_nothing_that_is_computed(data: Data) -> None:
    plain = loads(data)
    tuned = dataclasses.replace(plain, points={"balanced": POINT})
    again = Manifest.loads(tuned.dumps())
    assert again.points["balanced"] == POINT
    assert again.points["balanced"].wall_clock_speedup == 1.5
    assert again.identity == plain.identity
    sizes(data)["mean"] = [0.1, 0.1, 0.1]
    assert loads(data).identity != plain.identity


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *[
            ({"guarantee": to_json(POINT)["guarantee"] | change}, message)
            for change, message in (
                ({"risk": 0.0}, "risk and delta must lie between 0 and 1"),
                ({"delta": 1.0}, "risk and delta must lie between 0 and 1"),
                ({"errors": 501}, "errors must be a part of the images"),
            )
        ],
        ({"shares": [0.5, 0.5]}, "point 'p' must have one share per exit"),
        ({"accuracy": 1.2}, "accuracy and shares must lie in 0..1"),
        ({"latency_ms": -1}, "latencies and speed-up must be positive"),
        ({"macs": float("inf")}, "expected finite numbers, found Infinity"),
        ({"macs": 0}, "latencies and speed-up must be positive"),
        ({"guarantee": {}}, "missing key 'risk'"),
    ],
)
def test_operating_points_that_are_refused(data: Data, change: Data, message: str) -> None:
    data["points"] = {"p": to_json(POINT) | change}
    with pytest.raises(BundleError, match=message):
        loads(data)


@pytest.mark.parametrize("name", ["", "../x", "a b", "-p", "x" * 65, "<b>"])
def test_names_of_points_that_are_refused(data: Data, name: str) -> None:
    data["points"] = {name: to_json(POINT)}
    with pytest.raises(BundleError, match="the name of an operating point must be letters"):
        loads(data)
