"""A Swin from checkpoint to answers: hidden states change their shape from segment to segment."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from lgvit_edge.architecture.config import ExitConfig
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.bundle.manifest import TensorSpec
from lgvit_edge.export import ExportOptions, build_engines, export_bundle
from lgvit_edge.images.labelled import unlabelled_images
from lgvit_edge.images.preprocess import to_float
from lgvit_edge.machine.openvino import shared_core
from lgvit_edge.model import LGViT
from lgvit_edge.policies import Confidence, FixedExit
from lgvit_edge.runtime import Session


def frames(count: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(count)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def expected_logits(model: LGViT, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    with torch.no_grad():
        pixels = torch.from_numpy(to_float(images, model.config.preprocess))
        logits: NDArray[np.float32] = model.exit_logits(pixels).numpy()
    return logits


def confidences(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = torch.from_numpy(logits).softmax(-1).amax(-1).numpy()
    return found


# What is written.


def test_the_manifest_has_every_segments_own_shape(swin_bundle: Path) -> None:
    manifest = open_bundle(swin_bundle).manifest
    assert (manifest.passes[0].family, manifest.passes[0].num_blocks) == ("swin", 5)
    assert [(s.head, s.first_block, s.last_block) for s in manifest.segments] == [
        ("lph", 1, 2),
        ("gah", 3, 3),  # opens with a patch merging
        ("final", 4, 5),  # shifted windows, then a patch merging
    ]
    shapes = [
        [tensor.shape for tensor in (*s.spec.inputs, *s.spec.outputs)] for s in manifest.segments
    ]
    assert shapes == [
        [(-1, 32, 32, 3), (-1, 256, 8), (-1, 5)],
        [(-1, 256, 8), (-1, 64, 16), (-1, 5)],
        [(-1, 64, 16), (-1, 5)],
    ]
    assert max(manifest.parity.max_difference) < 1e-5


def test_the_graphs_have_the_manifests_shapes(swin_bundle: Path) -> None:
    for segment in open_bundle(swin_bundle).manifest.segments:
        graph = onnx.load(swin_bundle / segment.spec.graph.file, load_external_data=False).graph
        for spec, value in zip(
            (*segment.spec.inputs, *segment.spec.outputs),
            (*graph.input, *graph.output),
            strict=True,
        ):
            dims = value.type.tensor_type.shape.dim
            assert value.name == spec.name
            assert [d.dim_value for d in dims][1:] == list(spec.shape[1:]) and dims[0].dim_param


def test_windows_are_gathers_of_constants(swin_bundle: Path) -> None:
    """No roll, no mask made at run time: each block has a gather to its windows and one back."""
    graph = onnx.load(swin_bundle / "baseline.onnx", load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("Gather") == 2 * 5
    assert kinds.count("Softmax") == 5
    assert not {"Slice", "Split", "Where", "Roll", "ScatterND", "Mod"} & set(kinds)
    constants = {initializer.name for initializer in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    assert all(node.input[1] in constants for node in graph.node if node.op_type == "Gather")


# What it answers.


@pytest.mark.parametrize("count", [1, 3, 4])
def test_every_exit_matches_pytorch(swin_bundle: Path, swin_model: LGViT, count: int) -> None:
    images = frames(count)
    expected = expected_logits(swin_model, images)
    with Session.open(swin_bundle, backend="onnxruntime") as session:
        np.testing.assert_allclose(session.exit_logits(list(images)), expected, atol=1e-5)
        baseline = session.baseline_logits(session.prepare(list(images[:1])))
        np.testing.assert_allclose(baseline, expected[:1, -1], atol=1e-5)
        for exit in (1, 2, 3):
            session.policy = FixedExit(exit)
            wanted = expected[:, exit - 1]
            results = [session.predict(images[0]), *session.predict_batch(list(images))]
            for result, logits in zip(results, [wanted[0], *wanted], strict=True):
                assert (result.exit, result.block) == (exit, (2, 3, 5)[exit - 1])
                assert result.class_index == logits.argmax()
                assert result.confidence == pytest.approx(confidences(logits[None])[0], abs=1e-5)


@pytest.mark.parametrize("count", [3, 4, 11])
def test_images_that_leave_do_not_disturb_those_that_stay(
    swin_bundle: Path, swin_model: LGViT, count: int
) -> None:
    images = frames(count)
    expected = expected_logits(swin_model, images)
    sure = confidences(expected)
    # Half of the images leave at the first exit, half of the others at the second.
    first = float(np.sort(sure[:, 0])[(count - 1) // 2])
    left = sure[:, 0] > first
    second = float(np.sort(sure[~left, 1])[(~left).sum() // 2 - 1])
    exits = np.where(left, 1, np.where(sure[:, 1] > second, 2, 3))
    assert set(exits) == {1, 2, 3}
    with Session.open(swin_bundle, backend="onnxruntime") as session:
        # Between two confidences, so that rounding decides nothing.
        session.policy = Confidence((first + 1e-6, second + 1e-6))
        results = session.predict_batch(list(images))
        alone = [session.predict(image) for image in images]
    for found in (results, alone):
        assert [result.exit for result in found] == exits.tolist()
        for row, result in enumerate(found):
            assert result.class_index == expected[row, exits[row] - 1].argmax()
            assert result.confidence == pytest.approx(sure[row, exits[row] - 1], abs=1e-5)


def test_openvino_agrees(swin_bundle: Path, swin_model: LGViT) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    bundle, core = open_bundle(swin_bundle), shared_core()
    images = frames(3)
    hidden, found = images, []
    for segment in bundle.manifest.segments:
        path = bundle.path(segment.spec.graph)
        compiled = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        *rest, logits = compiled([hidden]).to_tuple()
        hidden = rest[0] if rest else None
        found.append(logits)
    expected = expected_logits(swin_model, images)
    np.testing.assert_allclose(np.stack(found, axis=1), expected, atol=1e-4)


# Other precisions, and engines.


@pytest.mark.trt
def test_engines_of_a_swin(swin_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    out = Path(shutil.copytree(swin_bundle, tmp_path / "out"))
    built = build_engines(out)
    assert built.compiled == ("segment_0", "segment_1", "segment_2", "baseline")
    assert built.build.warnings == ()


def test_int8_inside_half_precision(tmp_path: Path, swin_model: LGViT) -> None:
    """Its first exit alone makes fewer graphs; half precision by itself is in test_coverage.py."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, pixels in enumerate(frames(12)):
        Image.fromarray(pixels).save(photos / f"{i}.png")
    options = ExportOptions(target="rtx", precision="int8", tolerance=10.0)
    images = unlabelled_images(photos)
    manifest = export_bundle(
        swin_model.with_exits([2]), tmp_path / "out", options, calibration=images
    )
    assert manifest.calibration is not None
    (blocks,) = manifest.calibration.blocks
    assert blocks
    assert manifest.segments[1].spec.inputs[0] == TensorSpec("hidden", "float16", (1, 256, 8))
    graph = onnx.load(tmp_path / "out" / "baseline.onnx", load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QuantizeLinear") == 2 * len(blocks)
    with Session.open(tmp_path / "out", backend="onnxruntime") as session:
        assert np.isfinite(session.exit_logits(list(frames(2)))).all()
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    assert len(build_engines(tmp_path / "out").compiled) == 3


def test_exits_that_are_left_out_change_no_answer(swin_model: LGViT) -> None:
    images = frames(2)
    fewer = swin_model.with_exits([3])
    assert fewer.config.exits == (ExitConfig(3, "gah", 2),)
    expected = expected_logits(swin_model, images)
    np.testing.assert_allclose(expected_logits(fewer, images), expected[:, 1:], atol=1e-6)
