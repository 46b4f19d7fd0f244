"""Half and int8 precision: what the graphs hold, how far they drift, and when an export fails."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from small import swin

from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.bundle.evidence import ALLOWED
from lgvit_edge.bundle.manifest import FileSpec, GraphSpec, TensorSpec
from lgvit_edge.cli.export import _islands
from lgvit_edge.errors import DataError, ParityError, UsageError
from lgvit_edge.export import ExportOptions, export_bundle
from lgvit_edge.export.checks import gate, graph_runner, judge, sample_images
from lgvit_edge.export.graph import Part, WeightStore, save, trace
from lgvit_edge.export.half import halve
from lgvit_edge.export.int8 import calibrate
from lgvit_edge.images.labelled import LabelledImage, content_hash, find_images, unlabelled_images
from lgvit_edge.model import LGViT, baseline, cut
from lgvit_edge.model.randomised import randomised
from lgvit_edge.policies import Confidence
from lgvit_edge.policies.scores import difference
from lgvit_edge.runtime import Session

pytestmark = pytest.mark.slow
HALF = onnx.TensorProto.FLOAT16


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of each of the classes a to e."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in "abcde":
        (root / name).mkdir()
        for i in range(6):
            pixels = rng.integers(0, 256, (4, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def half(rtx_bundle: Callable[[str], Path]) -> Path:
    return rtx_bundle("fp16")


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory, exported_model: LGViT, photos: Path) -> Path:
    out = tmp_path_factory.mktemp("int8") / "out"
    options = ExportOptions(target="rtx", precision="int8", tolerance=10.0)
    export_bundle(exported_model, out, options, calibration=unlabelled_images(photos))
    return out


def graph(bundle: Path, name: str) -> onnx.GraphProto:
    return onnx.load(bundle / name, load_external_data=False).graph


def kinds(found: onnx.GraphProto) -> list[str]:
    return [node.op_type for node in found.node]


# Half precision.


@pytest.mark.parametrize(
    ("target", "precision"), [("cpu", "fp32"), ("jetson", "fp16"), ("rtx", "fp16")]
)
def test_each_target_has_its_precision(target: str, precision: str) -> None:
    assert ExportOptions(target=target).precision == precision


def test_half_precision_is_in_the_types(half: Path) -> None:
    manifest = open_bundle(half).manifest
    assert (manifest.precision, manifest.hidden_dtype) == ("fp16", "float16")
    for name in ("segments/segment_1.onnx", "baseline.onnx"):
        found = graph(half, name)
        assert found.output[-1].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        norms = [n.input for n in found.node if n.op_type == "LayerNormalization"]
        wide = {name for inputs in norms for name in inputs[1:]}
        rest = {weight.data_type for weight in found.initializer if weight.name not in wide}
        assert rest <= {HALF, onnx.TensorProto.INT64}
    assert graph(half, "segments/segment_1.onnx").input[0].type.tensor_type.elem_type == HALF


def test_half_precision_stays_near_float32(half: Path, bundle: Path) -> None:
    frames = list(np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), np.uint8))
    with Session.open(half) as a, Session.open(bundle) as b:
        gap = np.abs(a.exit_logits(frames) - b.exit_logits(frames)).max()
    assert 0 < gap < 0.02


def test_dark_and_bright_pixels_survive_half_precision(exported_model: LGViT) -> None:
    """Folded into the weights, 1 / 255 would push them among float16's subnormals."""
    frames = torch.randint(0, 4, (2, 32, 32, 3), dtype=torch.uint8)
    segment = cut(exported_model)[0].module
    with torch.no_grad():
        wanted, found = segment(frames)[0], halve(segment)(frames)[0].float()
    assert (found - wanted).abs().max() < 4e-3 * wanted.abs().max()


def test_cosines_survive_half_precision(tmp_path: Path) -> None:
    """Padding has keys of length 0, squares of long queries overflow, and scales reach 100."""
    model = randomised(LGViT(swin(family="swinv2", image_size=20, num_blocks=2, depths=(1, 1))))
    with torch.no_grad():
        for block in model.backbone.blocks:
            block.attention.query.weight *= 300.0  # type: ignore
            block.attention.scale[0] = 100.0  # type: ignore
    images, pixels = sample_images(model.config, "uint8")
    part = Part("x.onnx", halve(baseline(model)), torch.from_numpy(images[:1]), "image", ("y",))
    path, weights = tmp_path / "x.onnx", WeightStore(tmp_path / "weights.bin")
    save(trace([part], opset=18, batch=(1, 1))[1], path, weights)
    taken, given = TensorSpec("image", "uint8", (1, 20, 20, 3)), TensorSpec("y", "float32", (1, 5))
    spec = GraphSpec(FileSpec("x.onnx", "0" * 64, 9), (taken,), (given,), macs=1, parameters=1)
    (answer,) = graph_runner(path, spec)(images)
    with torch.no_grad():
        expected = model(pixels).numpy()
    assert difference(answer, expected) < 0.02 < np.abs(expected[1:] - expected[:-1]).max()


def test_islands_stay_in_float32(tmp_path: Path, quick_model: LGViT) -> None:
    options = ExportOptions(target="jetson", fp32_islands=("layernorm", "softmax"))
    export_bundle(quick_model, tmp_path / "out", options)
    found = graph(tmp_path / "out", "baseline.onnx")
    made = onnx.shape_inference.infer_shapes(
        onnx.load(tmp_path / "out" / "baseline.onnx", load_external_data=False)
    )
    types = {v.name: v.type.tensor_type.elem_type for v in made.graph.value_info}
    for node in found.node:
        if node.op_type in ("LayerNormalization", "Softmax"):
            assert types[node.output[0]] == onnx.TensorProto.FLOAT
        if node.op_type == "MatMul":
            assert types.get(node.output[0], HALF) == HALF
    assert kinds(found).count("Softmax") == 2
    assert open_bundle(tmp_path / "out").manifest.fp32_islands == ("layernorm", "softmax")


@pytest.mark.parametrize(
    ("options", "islands"),
    [
        ({"target": "rtx"}, ("layernorm",)),
        ({"target": "rtx", "precision": "int8"}, ("layernorm",)),
        ({"target": "jetson"}, ("layernorm",)),
        ({"target": "jetson", "jetpack": "6.0"}, ()),  # its TensorRT promises float32 by itself
        ({"target": "rtx", "fp32_islands": ()}, ()),
        ({"target": "rtx", "precision": "fp32"}, ()),
        ({"target": "cpu", "precision": "fp16"}, ()),
    ],
)
def test_no_layernorm_depends_on_what_is_not_promised(
    options: dict[str, str], islands: tuple[str, ...]
) -> None:
    assert ExportOptions(**options).fp32_islands == islands  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["none,softmax", "", "gelu"])
def test_what_cannot_be_kept_in_float32(text: str, command: Callable[..., str]) -> None:
    given = ("--arch", "vit-tiny", "--target", "rtx", "--no-engines", "--keep-fp32", text)
    assert "must be among layernorm, softmax" in command("export", *given, status=2)


def test_nothing_may_be_kept_in_float32() -> None:
    texts = (None, "none", "layernorm,softmax")
    assert [_islands(t) for t in texts] == [None, (), ("layernorm", "softmax")]


def test_products_are_summed_in_float32(
    tmp_path: Path, exported_model: LGViT, rtx_bundle: Callable[[str], Path]
) -> None:
    """Cast, product, cast back: so NVIDIA asks for it, and TensorRT fuses it."""
    half = rtx_bundle("fixed")
    options = ExportOptions(target="rtx", fp32_accumulate=True)
    export_bundle(exported_model, tmp_path / "out", options)
    manifest, usual = (open_bundle(root).manifest for root in (tmp_path / "out", half))
    assert manifest.fp32_islands == ("layernorm", "accumulation")
    assert [g.macs for g in manifest.graphs] == [g.macs for g in usual.graphs]
    seen = set()
    for spec in manifest.graphs:
        found = graph(tmp_path / "out", spec.graph.file)
        makers = {output: node for node in found.node for output in node.output}
        stored = {weight.name: weight.data_type for weight in found.initializer}
        for node in found.node:
            if node.op_type in ("MatMul", "Gemm"):
                seen.add(node.op_type)
                assert len(node.input) == 2, "a bias is added after the cast"
                sources = [makers[name] for name in node.input]
                assert [(s.op_type, s.attribute[0].i) for s in sources] == [("Cast", 1)] * 2
                assert {stored.get(s.input[0], HALF) for s in sources} == {HALF}
                (reader,) = [n for n in found.node if node.output[0] in n.input]
                assert (reader.op_type, reader.attribute[0].i) == ("Cast", HALF)
    assert seen == {"MatMul", "Gemm"}
    sizes = [(r / "segments" / "weights.bin").stat().st_size for r in (tmp_path / "out", half)]
    assert sizes[0] == sizes[1]
    frames = list(np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), np.uint8))
    with Session.open(tmp_path / "out") as a, Session.open(half) as b:
        assert np.abs(a.exit_logits(frames) - b.exit_logits(frames)).max() < 0.02


def test_frames_for_tensorrt_are_cast_first(half: Path, bundle: Path) -> None:
    """Its parser takes uint8 into a cast and nothing else."""

    def readers(root: Path) -> set[str]:
        return {n.op_type for n in graph(root, "baseline.onnx").node if "image" in n.input}

    # Shape asks for the batch's size and moves nothing.
    assert readers(half) == {"Cast", "Shape"}
    assert readers(bundle) == {"Reshape", "Shape"}


# int8.


def test_only_mlps_are_quantized(int8: Path) -> None:
    manifest = open_bundle(int8).manifest
    assert manifest.calibration is not None
    (blocks,) = manifest.calibration.blocks
    assert blocks and manifest.hidden_dtype == "float16"
    found = graph(int8, "baseline.onnx")
    assert kinds(found).count("QuantizeLinear") == 2 * len(blocks)  # one per product's input
    assert kinds(found).count("DequantizeLinear") == 4 * len(blocks)
    makers = {output: node for node in found.node for output in node.output}
    products = [n for n in found.node if n.op_type in ("MatMul", "Gemm")]
    quantized = [
        n for n in products if n.input[0] in makers and "Dequantize" in makers[n.input[0]].op_type
    ]
    assert len(quantized) == 2 * len(blocks) < len(products)
    scales = [n.input[1] for n in found.node if n.op_type == "QuantizeLinear"]
    assert {i.data_type for i in found.initializer if i.name in scales} == {HALF}


def test_segments_and_baseline_share_quantized_weights(int8: Path, half: Path) -> None:
    size = {path: (path / "segments" / "weights.bin").stat().st_size for path in (int8, half)}
    assert size[int8] < size[half]


def test_calibration_is_recorded(int8: Path, photos: Path) -> None:
    calibration = open_bundle(int8).manifest.calibration
    assert calibration is not None and calibration.images == 30
    assert calibration.sha256 == content_hash(unlabelled_images(photos))


def test_int8_on_a_cpu_keeps_float32_between_products(
    tmp_path: Path, quick_model: LGViT, photos: Path
) -> None:
    options = ExportOptions(precision="int8", tolerance=10.0)
    images = unlabelled_images(photos)
    export_bundle(quick_model, tmp_path / "out", options, calibration=images)
    assert open_bundle(tmp_path / "out").manifest.hidden_dtype == "float32"
    frames = [np.zeros((32, 32, 3), np.uint8)]
    with Session.open(tmp_path / "out") as session:
        assert np.isfinite(session.exit_logits(frames)).all()


def test_outliers_keep_a_block_in_float(exported_model: LGViT) -> None:
    images = torch.randn(8, 3, 32, 32)
    calm = calibrate(exported_model, iter([images]))
    assert set(calm) == {1, 2, 3, 4}

    def spike(_: object, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        wild = inputs[0].clone()
        wild[0, 0, 0] = 1e4
        return (wild,)

    hook = exported_model.backbone.blocks[1].fc2.register_forward_pre_hook(spike)  # type: ignore
    try:
        assert set(calibrate(exported_model, iter([images]))) == {1, 3, 4}
    finally:
        hook.remove()


def test_limits_are_percentiles(exported_model: LGViT) -> None:
    images = torch.randn(8, 3, 32, 32)
    seen: list[torch.Tensor] = []
    layer = exported_model.backbone.blocks[0].fc1
    hook = layer.register_forward_pre_hook(lambda _, x: seen.append(x[0].abs().flatten()))  # type: ignore
    limits = calibrate(exported_model, iter([images[:4], images[4:]]))
    hook.remove()
    values = torch.cat(seen).sort().values
    exact = values[int(np.ceil(len(values) * 0.99999)) - 1]
    assert limits[1]["fc1"] == pytest.approx(float(exact), rel=0.011)


@pytest.mark.parametrize(
    ("options", "images", "text"),
    [
        ({"precision": "int8"}, False, "int8 scales are computed from images: add --calib"),
        ({"precision": "fp16"}, True, "--calib is for --precision int8"),
    ],
)
def test_calibration_goes_with_int8(
    options: dict[str, str],
    images: bool,
    text: str,
    tmp_path: Path,
    exported_model: LGViT,
    photos: Path,
) -> None:
    given = unlabelled_images(photos) if images else []
    with pytest.raises(UsageError, match=text):
        export_bundle(
            exported_model,
            tmp_path / "out",
            ExportOptions(**options),  # type: ignore[arg-type]
            calibration=given,
        )


def test_one_image_is_too_few(tmp_path: Path, exported_model: LGViT, photos: Path) -> None:
    images = unlabelled_images(photos)[:1]
    with pytest.raises(UsageError, match="need at least 8 images, better 128; found 1"):
        options = ExportOptions(precision="int8")
        export_bundle(exported_model, tmp_path / "out", options, calibration=images)


def test_int8_needs_an_opset_that_has_it() -> None:
    for opset in (18, 21):
        with pytest.raises(UsageError, match="int8 needs opset 19 or 20"):
            ExportOptions(precision="int8", opset=opset)


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        unlabelled_images(tmp_path / "none")
    with pytest.raises(DataError, match="holds no images"):
        unlabelled_images(tmp_path)


# The gate on real images.


def test_agreement_is_recorded(tmp_path: Path, quick_model: LGViT, photos: Path) -> None:
    images = find_images(photos, num_classes=5, names=tuple("abcde"))
    options = ExportOptions(target="jetson", policy=Confidence(0.6))
    export_bundle(quick_model, tmp_path / "out", options, images=images)
    found = open_bundle(tmp_path / "out").manifest.agreement
    assert found is not None
    assert found.images == 30 and found.policy == Confidence(0.6).to_json()
    assert found.same_exit >= 0.9 and found.accuracy is not None
    assert len(found.confidence_change) == 2
    assert all(0 < change < 0.01 for change in found.confidence_change)


def logits(*confidences: float) -> np.ndarray:
    """Two classes, one image, these confidences in class 0 at the exits."""
    odds = [np.log(c / (1 - c)) for c in confidences]
    return np.array([[[o, 0.0] for o in odds]], np.float32)


def test_decisions_are_what_is_compared() -> None:
    """Hand-computed: the second image leaves later, and with another answer."""
    wanted = np.concatenate([logits(0.9, 0.9), logits(0.81, 0.9)])
    found = np.concatenate([logits(0.88, 0.9), logits(0.79, 0.1)])
    images = [LabelledImage(Path(__file__), 0)] * 2
    compared = judge(wanted, found, images, Confidence(0.8))
    assert (compared.same_exit, compared.same_label) == (0.5, 0.5)
    assert (compared.reference_accuracy, compared.accuracy) == (1.0, 0.5)
    assert compared.confidence_change == pytest.approx((0.02, 0.0), abs=1e-6)


def test_without_labels_there_is_no_accuracy() -> None:
    images = [LabelledImage(Path(__file__), None)]
    compared = judge(logits(0.9, 0.9), logits(0.9, 0.9), images, Confidence(0.8))
    assert compared.accuracy is None and compared.same_exit == 1.0
    gate(compared, "fp16")


@pytest.mark.parametrize(
    ("precision", "allowed", "refused"), [("fp16", 0.99, 0.98), ("int8", 0.97, 0.96)]
)
def test_the_gate(precision: str, allowed: float, refused: float) -> None:
    images = [LabelledImage(Path(__file__), 0)]
    good = judge(logits(0.9, 0.9), logits(0.9, 0.9), images, Confidence(0.8))
    good = dataclasses.replace(good, images=1000, confidence_change=(0.01, 0.2, 0.03))
    gate(dataclasses.replace(good, same_exit=allowed), precision)
    with pytest.raises(ParityError, match=r"images leave at another exit.*segment 1, by 0\.2000"):
        gate(dataclasses.replace(good, same_exit=refused), precision)
    worse = dataclasses.replace(good, reference_accuracy=0.7, accuracy=0.68)
    with pytest.raises(ParityError, match=r"top-1 fell from 70\.00% to 68\.00%"):
        gate(worse, precision)


def test_a_failing_gate_writes_nothing(
    tmp_path: Path, quick_model: LGViT, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ALLOWED, "fp16", (-1.0, -1.0))
    images = find_images(photos, num_classes=5, names=tuple("abcde"))
    with pytest.raises(ParityError, match="nothing was written; try --keep-fp32"):
        export_bundle(quick_model, tmp_path / "out", ExportOptions(target="jetson"), images=images)
    assert list(tmp_path.iterdir()) == []
