"""The chain on OpenVINO: the same answers as on ONNX Runtime, and what it refuses."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray
from small import frames

from lgvit_edge.bundle.builds import graphs_of
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.errors import BackendError, BundleError, UsageError
from lgvit_edge.machine.openvino import shared_core
from lgvit_edge.runtime import Confidence, Ensemble, FixedExit, Never, Patience, Policy, Session
from lgvit_edge.runtime.backends import openvino
from lgvit_edge.runtime.backends.openvino import PRECISIONS, OpenVINOChain, available_precisions

pytest.importorskip("openvino", reason="openvino is not installed")


def test_every_exit_agrees_with_pytorch(bundle: Path, swin_bundle: Path) -> None:
    for path in (bundle, swin_bundle):
        with Session.open(path, backend="openvino") as session:
            assert session.check_parity() < 1e-4
            assert session.describe()["backend"] == "openvino"


def test_half_precision_agrees_within_its_tolerance(rtx_bundle: Callable[[str], Path]) -> None:
    with Session.open(rtx_bundle("fixed"), backend="openvino") as session:
        assert session.check_parity() <= session.manifest.parity.tolerance


@pytest.mark.parametrize(
    "policy", [Confidence(0.35), Ensemble(0.4), Patience(2), FixedExit(2), Never()], ids=str
)
def test_images_leave_where_they_do_on_onnx_runtime(bundle: Path, policy: Policy) -> None:
    images = frames(11)
    with (
        Session.open(bundle, backend="openvino", policy=policy) as session,
        Session.open(bundle, backend="onnxruntime", policy=policy) as other,
    ):
        expected = [(r.exit, r.class_index) for r in other.predict_batch(images)]
        together = session.predict_batch(images)  # in batches of at most 4, from which rows leave
        alone = [session.predict(frame) for frame in images]
        again = session.predict_batch(images)
    for found in (together, alone, again):
        assert [(r.exit, r.class_index) for r in found] == expected


def test_logits_are_those_of_onnx_runtime(bundle: Path) -> None:
    images = frames(7, seed=1)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    with (
        Session.open(bundle, backend="openvino") as session,
        Session.open(bundle, backend="onnxruntime") as other,
    ):
        close(session.exit_logits(images), other.exit_logits(images))
        ready = session.prepare(images[:3])
        base = session.baseline_logits(ready)
        close(base, other.baseline_logits(ready))
        kept = base.copy()
        session.baseline_logits(session.prepare(images[3:6]))
        assert (base == kept).all()  # they are the caller's


def test_threads_are_as_many_as_asked_for(bundle: Path) -> None:
    with Session.open(bundle, backend="openvino", threads=1) as session:
        assert session.describe()["threads"] == 1


def test_a_device_that_is_not_there_is_named(bundle: Path) -> None:
    with pytest.raises(UsageError, match="device must be one of cpu, gpu, gpu:N, npu, found 'tpu'"):
        Session.open(bundle, backend="openvino", device="tpu")
    if any(device.startswith("NPU") for device in shared_core().available_devices):
        pytest.skip("this machine has an NPU")
    with pytest.raises(BackendError, match="OpenVINO finds no npu here, only .*cpu"):
        Session.open(bundle, backend="openvino", device="npu")


@pytest.mark.parametrize(
    ("device", "found", "name"),
    [
        (None, ["CPU", "GPU"], "CPU"),
        ("gpu", ["CPU", "GPU.0", "GPU.1"], "GPU"),
        ("gpu:1", ["CPU", "GPU.0", "GPU.1"], "GPU.1"),
        ("gpu:0", ["CPU", "GPU"], "GPU.0"),
        ("gpu:1", ["CPU", "GPU"], None),
        ("gpu:10", ["CPU", "GPU.0", "GPU.1"], None),
    ],
)
def test_the_second_gpu(
    device: str | None, found: list[str], name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No machine with two was there to try it: what OpenVINO would be asked for."""
    asked = []

    def told(name: str, _: str) -> list[str]:
        asked.append(name)
        return ["FP32"]

    core = SimpleNamespace(available_devices=found, get_property=told)
    monkeypatch.setattr(openvino, "shared_core", lambda: core)
    if name is None:
        listed = ", ".join(found).lower().replace(".", ":")
        with pytest.raises(BackendError, match=f"finds no {device} here, only {listed}; use one"):
            available_precisions(device)
    else:
        assert available_precisions(device) == ["fp32"] and asked == [name]


def test_a_graph_that_is_none(bundle_copy: Path) -> None:
    opened = open_bundle(bundle_copy)
    graphs = list(graphs_of(opened).values())[:-1]
    (bundle_copy / graphs[0].graph.file).write_bytes(b"no graph")
    with pytest.raises(BundleError, match=r"segment_0\.onnx cannot be compiled by OpenVINO: "):
        OpenVINOChain(bundle_copy, graphs, max_batch=4)


def test_a_precision_the_processor_lacks_is_refused(bundle: Path) -> None:
    with pytest.raises(UsageError, match="precision must be one of fp32, bf16, fp16, found 'f32'"):
        Session.open(bundle, backend="openvino", precision="f32")
    with Session.open(bundle, backend="openvino", precision="fp32") as session:
        assert session.describe()["precision"] == "fp32"
    lacking = set(PRECISIONS) - set(available_precisions())
    if not lacking:
        pytest.skip("this processor computes in every precision")
    with pytest.raises(BackendError, match="computes in fp32.*, not in .*16; use precision='fp32'"):
        Session.open(bundle, backend="openvino", precision=lacking.pop())


def test_compiled_models_are_kept_and_damage_is_noticed(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_bundle(bundle)
    graphs = list(graphs_of(opened).values())[:-1]
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)

    def logits() -> NDArray[np.float32]:
        chain = OpenVINOChain(bundle, graphs, max_batch=4, cache=tmp_path / "cache")
        chain.start(images)
        found = np.stack([chain.step().copy() for _ in graphs])
        chain.close()
        return found

    first = logits()
    blobs = sorted((tmp_path / "cache").glob("*.blob"))
    assert len(blobs) == 4
    written = [blob.stat().st_mtime_ns for blob in blobs]
    np.testing.assert_array_equal(logits(), first)
    assert [blob.stat().st_mtime_ns for blob in blobs] == written
    for harm in (lambda c: c[: len(c) // 2], lambda c: b"", lambda c: b"x" * len(c)):
        blobs[1].write_bytes(harm(blobs[1].read_bytes()))
        np.testing.assert_allclose(logits(), first, atol=1e-5)
