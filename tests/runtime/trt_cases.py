"""Building and running engines on stand-ins; ``trt_versions`` starts this file.

TensorRT's module is shaped by the bindings named in the environment, CUDA's driver is the fake one,
and cuda-python is NVIDIA's own. Engines run through ONNX Runtime at the addresses the chain bound.
"""

from __future__ import annotations

import gc
import importlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_cuda
import numpy as np
import pytest
import trt_standin
from click.testing import Result
from numpy.typing import NDArray
from PIL import Image
from signed import key_pair, signed_copy
from typer.testing import CliRunner

from lgvit_edge._support.files import locked
from lgvit_edge.bundle import builds as engines
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.cli.app import app
from lgvit_edge.errors import (
    BackendError,
    BuildError,
    BundleError,
    MissingDependency,
    ParityError,
    UsageError,
)
from lgvit_edge.export import BuilderOptions, build_engines
from lgvit_edge.export.tensorrt import apart, build
from lgvit_edge.policies import Memory, Rule
from lgvit_edge.policies import rules as policy
from lgvit_edge.runtime import Session, TargetRate, TensorRTOptions
from lgvit_edge.runtime.backends import device_exit
from lgvit_edge.runtime.backends.ort import OrtChain
from lgvit_edge.runtime.backends.tensorrt import padded_sizes
from lgvit_edge.runtime.cuda import driver

FAKE = fake_cuda.load()
RTX = os.environ["TRT_MODULE"] == "tensorrt_rtx"
LIBRARY = "tensorrt-rtx" if RTX else "tensorrt"
VERSION = os.environ["TRT_VERSION"]
BUNDLES = Path(os.environ["TRT_BUNDLES"])  # fp32, fp16, swin, two: batches 1 to 8; fixed: 1
sys.path.insert(0, os.environ.get("TRT_FOLDER", ""))
TRT = trt_standin.install(
    importlib.import_module(os.environ["TRT_BINDINGS"]), os.environ["TRT_MODULE"], VERSION
)
PLAN = b"standin"
# For what does not touch TensorRT's own calls, which differ by version: one version has it all.
WHOLE = bool(os.environ["TRT_WHOLE"])
once = pytest.mark.skipif(not WHOLE, reason="alike in every version")
WAYS = [(True, True), (False, False)]  # CUDA graphs, and speculation or images without a copy
INTEGRATED = [False]  # only CUDA's calls differ where CPU and GPU share memory
if WHOLE:
    WAYS += [(True, False), (False, True)]
    INTEGRATED += [True]


@pytest.fixture(autouse=True, scope="session")
def here() -> Iterator[None]:
    """Engines are compiled in this process, as in an application packed into one program."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apart, "python_starts_python", lambda: False)
        # Engines are of whole segments. In half precision the hidden state is rounded between.
        patch.setattr(OrtChain, "_in_parts", False)
        yield


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Engines are compiled in processes of their own, by stand-ins with these attributes."""
    child = str(Path(trt_standin.__file__).with_name("trt_child.py"))
    monkeypatch.setattr(apart, "python_starts_python", lambda: True)
    monkeypatch.setattr(apart, "python_running", lambda _, pipe: [sys.executable, child, pipe])

    def behave(**attributes: object) -> None:
        monkeypatch.setenv("TRT_ATTRIBUTES", json.dumps(attributes))

    behave()
    return behave


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    FAKE.fake_reset()
    TRT.refuse_execution = TRT.refuse_building = ""
    TRT.capturable = True
    TRT.silently_float32 = TRT.fused = TRT.slow_half = False
    TRT.inner = []
    TRT.reports_layers = TRT.describes_layers = True
    TRT.off_by = 0.0
    TRT.nan_from = None
    TRT.does_not_start = TRT.unsupported = False
    TRT.calls.clear()
    TRT.callbacks.clear()
    TRT.devices.clear()
    driver._retained.clear()
    FAKE.cuCtxSetCurrent(None)
    yield
    kept = {"contexts": len(driver._retained)}  # on purpose, until the process ends
    left = {name: count for name, count in fake_cuda.counts(FAKE).items() if count}
    assert left == {name: count for name, count in kept.items() if count}, f"leaked: {left}"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles with engines; do not change them, take ``bundle``."""
    FAKE.fake_reset()  # no other test's GPU
    root = tmp_path_factory.mktemp("compiled")
    for name in ("fp32", "fp16", "fixed", "swin", "two"):
        build_engines(copied(name, root), library=LIBRARY)
    return root


@pytest.fixture
def bundle(compiled: Path, tmp_path: Path) -> Path:
    """A half-precision bundle with engines, to change."""
    return Path(shutil.copytree(compiled / "fp16", tmp_path / "fp16"))


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """The same without engines."""
    (tmp_path / "plain").mkdir()
    return copied("fp16", tmp_path / "plain")


def copied(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(BUNDLES / name / "out", folder / name))


def frames(count: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(count)
    return list(rng.integers(0, 256, (count, 32, 32, 3), np.uint8))


def open_trt(bundle: Path, trusted_keys: Any = None, **options: object) -> Session:
    chosen = TensorRTOptions(binding="cuda-python", **options)  # type: ignore[arg-type]
    return Session.open(bundle, backend="tensorrt", tensorrt=chosen, trusted_keys=trusted_keys)


def folder_of(bundle: Path) -> Path:
    (folder,) = (bundle / "engines").iterdir()
    return folder


def plan(bundle: Path, name: str) -> dict[str, object]:
    (file,) = (bundle / "engines").glob(f"*/{name}.engine")
    return dict(json.loads(file.read_bytes().removeprefix(PLAN)))


# The chain.


@pytest.mark.parametrize("name", ["fp32", "fp16", "fixed", "swin"])
@pytest.mark.parametrize("integrated", INTEGRATED)
@pytest.mark.parametrize(("graphs", "speculate"), WAYS)
def test_every_exit_equals_onnx_runtime_bit_for_bit(
    name: str, integrated: bool, graphs: bool, speculate: bool, compiled: Path
) -> None:
    """Where CPU and GPU share memory, as on a Jetson, nothing is copied between them."""
    FAKE.fake_set_integrated(integrated)
    bundle = compiled / name
    with (
        open_trt(bundle, cuda_graphs=graphs, speculate=speculate) as trt,
        Session.open(bundle, backend="onnxruntime") as ort,
    ):
        for count in (1, 3, 8):
            images = frames(count)
            np.testing.assert_array_equal(trt.exit_logits(images), ort.exit_logits(images))
        images = ort.prepare(frames(1))
        np.testing.assert_array_equal(trt.baseline_logits(images), ort.baseline_logits(images))
        assert (trt.describe()["cuda_graphs"] > 0) is graphs
        assert trt.describe()["zero_copy"] is (FAKE.fake_copies() == 0) is integrated
        assert FAKE.fake_late_uploads() == 0


@pytest.mark.parametrize(("graphs", "speculate"), WAYS)
@pytest.mark.parametrize(
    ("wait", "integrated"), [("spin", False), ("block", True), ("hybrid", False)]
)
def test_rows_that_exit_leave_the_batch(
    graphs: bool, speculate: bool, wait: str, integrated: bool, bundle: Path
) -> None:
    """Thresholds amid the confidences, so that rows leave in every pattern, again and again."""
    FAKE.fake_set_integrated(integrated)
    with (
        open_trt(bundle, cuda_graphs=graphs, speculate=speculate, wait=wait) as trt,
        Session.open(bundle, backend="onnxruntime") as ort,
    ):
        seen = set()
        for seed in range(3):
            images = frames(8)[seed:] + frames(3)
            logits = ort.exit_logits(images)
            confidences = np.sort(
                np.exp(logits[:, :-1]).max(-1) / np.exp(logits[:, :-1]).sum(-1), 0
            )
            middle = tuple(float(c) for c in confidences[len(confidences) // 2])
            trt.policy = ort.policy = policy.Confidence(middle)
            for a, b in zip(trt.predict_batch(images), ort.predict_batch(images), strict=True):
                assert (a.exit, a.class_index) == (b.exit, b.class_index)
                assert a.confidence == pytest.approx(b.confidence, abs=2e-3)
                seen.add(a.exit)
        assert len(seen) >= 3


@pytest.mark.parametrize(("graphs", "speculate"), WAYS)
def test_rows_of_a_swin_leave_the_batch_whatever_its_stage(
    graphs: bool, speculate: bool, compiled: Path
) -> None:
    """Its hidden states shrink from segment to segment, and with them what a kept row is."""
    with (
        open_trt(compiled / "swin", cuda_graphs=graphs, speculate=speculate) as trt,
        Session.open(compiled / "swin", backend="onnxruntime") as ort,
    ):
        assert plan(compiled / "swin", "segment_1")["profile"] == [[n, 256, 8] for n in (1, 4, 8)]
        assert plan(compiled / "swin", "segment_2")["profile"] == [[n, 64, 16] for n in (1, 4, 8)]
        images = frames(8) + frames(3)
        logits = np.exp(ort.exit_logits(images))
        confidences = np.sort((logits.max(-1) / logits.sum(-1))[:, :-1], axis=0)
        trt.policy = ort.policy = policy.Confidence(tuple(map(float, confidences[5])))
        pairs = list(zip(trt.predict_batch(images), ort.predict_batch(images), strict=True))
        assert {a.exit for a, _ in pairs} == {1, 2, 3}
        for a, b in pairs:
            assert (a.exit, a.class_index) == (b.exit, b.class_index)
            assert a.confidence == pytest.approx(b.confidence, abs=1e-5)


@pytest.mark.parametrize("integrated", INTEGRATED)
@pytest.mark.parametrize(("graphs", "speculate"), WAYS)
def test_passes_equal_onnx_runtime_bit_for_bit(
    integrated: bool, graphs: bool, speculate: bool, compiled: Path
) -> None:
    """Two networks, three and two exits: images leave in each, one by one and from batches."""
    FAKE.fake_set_integrated(integrated)
    with (
        open_trt(compiled / "two", cuda_graphs=graphs, speculate=speculate) as trt,
        Session.open(compiled / "two", backend="onnxruntime") as ort,
    ):
        assert ort.manifest.begins == (0, None, None, 1, None)
        for count in (1, 3, 8):
            images = frames(count)
            np.testing.assert_array_equal(trt.exit_logits(images), ort.exit_logits(images))
        ready = ort.prepare(frames(2))
        np.testing.assert_array_equal(trt.baseline_logits(ready), ort.baseline_logits(ready))
        for frame in frames(3):
            for exit in (1, 5, 3, 4, 2, 3, 5):
                trt.policy = ort.policy = policy.FixedExit(exit)
                a, b = trt.predict(frame), ort.predict(frame)
                assert (a.class_index, a.confidence) == (b.class_index, b.confidence)
                assert (a.exit, a.pass_number) == (exit, 1 if exit <= 3 else 2)
        images = frames(8) + frames(3)
        logits = np.exp(ort.exit_logits(images))
        confidences = np.sort((logits.max(-1) / logits.sum(-1))[:, :-1], axis=0)
        trt.policy = ort.policy = policy.Confidence(tuple(map(float, confidences[-4])))
        pairs = list(zip(trt.predict_batch(images), ort.predict_batch(images), strict=True))
        assert {a.pass_number for a, _ in pairs} == {1, 2}
        for a, b in pairs:
            assert (a.exit, a.class_index) == (b.exit, b.class_index)
            assert a.confidence == pytest.approx(b.confidence, abs=1e-5)
        assert FAKE.fake_late_uploads() == 0


@pytest.mark.parametrize("zero_copy", [False, True])
@pytest.mark.parametrize("integrated", [False, True])
def test_one_frame_after_the_other_keeps_nothing_of_the_last(
    zero_copy: bool, integrated: bool, bundle: Path
) -> None:
    """Images leave early while the next segment already runs; the next image must not see it."""
    FAKE.fake_set_integrated(integrated)
    with (
        open_trt(bundle, speculate=True, zero_copy=zero_copy) as trt,
        Session.open(bundle, backend="onnxruntime") as ort,
    ):
        assert trt.describe()["zero_copy"] is (FAKE.fake_copies() == 0) is zero_copy
        for frame in frames(10):
            images = ort.prepare([frame])
            np.testing.assert_array_equal(trt.baseline_logits(images), ort.baseline_logits(images))
            for exit in (1, 3, 4, 2):
                trt.policy = ort.policy = policy.FixedExit(exit)
                a, b = trt.predict(frame), ort.predict(frame)
                assert (a.class_index, a.confidence) == (b.class_index, b.confidence)


def test_graphs_are_recorded_when_a_session_opens_and_replayed(bundle: Path) -> None:
    """Whatever sizes a batch shrinks to, nothing is set up in the middle of a stream."""
    with open_trt(bundle) as session:
        assert session.describe()["cuda_graphs"] == 4 * 4  # segments, sizes: 1, 2, 4, 8
        assert len(TRT.calls) == 2 * 4 * 4  # run once, recorded once
        for count in (1, 5, 3, 8, 7, 1, 2, 6, 4):
            session.exit_logits(frames(count))
        assert len(TRT.calls) == 2 * 4 * 4, "TensorRT was asked again"


def test_rtx_compiles_for_every_size_before_its_cache_is_stored(bundle: Path) -> None:
    if not RTX:
        pytest.skip("RTX alone compiles at run time")
    stored = folder_of(bundle) / "runtime.cache"
    with open_trt(bundle) as session:
        compiled = stored.read_bytes()
        wanted = {f"segment_{i} {n}".encode() for i in range(4) for n in (1, 2, 4, 8)}
        assert wanted <= set(compiled.split(b";"))
        session.exit_logits(frames(5) + frames(3))
        session.exit_logits(frames(3))
    assert stored.read_bytes() == compiled


@once
@pytest.mark.parametrize(("graphs", "speculate"), WAYS)
def test_padded_rows_are_never_seen(graphs: bool, speculate: bool, bundle: Path) -> None:
    """Three images run as four; the fourth row, here NaN, is nobody's."""
    with open_trt(bundle, cuda_graphs=graphs, speculate=speculate) as session:
        session.policy = policy.Never()
        images = frames(3)
        expected = [session.exit_logits([image])[0] for image in images]
        TRT.nan_from = 3
        np.testing.assert_allclose(session.exit_logits(images), expected, atol=2e-3)
        assert len(session.predict_batch(images)) == 3
        assert session.baseline_logits(session.prepare(images)).shape == (3, 5)
        TRT.nan_from = 2
        with pytest.raises(BackendError, match="not finite"):
            session.predict_batch(images)


@pytest.mark.parametrize(
    ("largest", "sizes"),
    [
        (1, [1]),
        (2, [1, 2]),
        (8, [1, 2, 4, 8]),
        (20, [1, 2, 4, 8, 16, 20]),
        (1000, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000]),
    ],
)
@once
def test_padded_sizes(largest: int, sizes: list[int]) -> None:
    assert padded_sizes(largest) == sizes


@once
def test_a_hybrid_wait_is_neither_late_nor_busy(bundle: Path) -> None:
    """A segment takes 20 ms here, and who lets the driver wake him comes 200 ms late."""
    with open_trt(bundle) as session:
        session.policy = policy.FixedExit(1)
        (frame,) = frames(1)
        FAKE.fake_set_pace(20_000, 200_000)
        latency, busy = [], []
        for _ in range(20):
            before = time.thread_time()
            latency.append(session.predict(frame).network_ms)
            busy.append((time.thread_time() - before) * 1e3)
    assert 20 <= np.median(latency[5:]) < 110
    assert sum(busy[5:]) < 0.5 * sum(latency[5:])


def test_speculation_runs_one_segment_ahead(bundle: Path) -> None:
    for speculate, ahead in ((False, []), (True, ["segment_1"])):
        with open_trt(bundle, cuda_graphs=False, speculate=speculate) as session:
            session.policy = policy.FixedExit(1)
            TRT.calls.clear()
            session.predict(frames(1)[0])
            assert TRT.calls == ["segment_0", *ahead]


# Building.


def test_engines_are_what_was_asked_for(plain: Path) -> None:
    built = build_engines(
        plain, library=LIBRARY, options=BuilderOptions(workspace=1 << 28, optimization_level=4)
    )
    assert built.compiled == ("segment_0", "segment_1", "segment_2", "segment_3", "baseline")
    found = plan(plain, "segment_1")
    assert found["profile"] == [[1, 17, 32], [4, 17, 32], [8, 17, 32]]
    assert found["settings"] == {
        "max_aux_streams": 0,
        "builder_optimization_level": 4,
        "WORKSPACE": 1 << 28,
    }
    flags = set(found["flags"])  # type: ignore[call-overload]
    assert "TF32" not in flags  # float32 means float32
    if VERSION.startswith("8."):
        assert {"FP16", "EXPLICIT_BATCH"} <= flags
        assert "PROFILE_SHARING_0806" in flags  # several contexts on one profile
    else:
        assert "STRONGLY_TYPED" in flags and not {"FP16", "INT8"} & flags
    assert not found["float32"] and not found["single"]
    folder = built.folder
    assert (folder / "timing.cache").exists() is not RTX
    if not RTX:
        assert built.build.gpu and built.build.compute_capabilities
        cached = (folder / "timing.cache").read_bytes()
        assert cached == b"....."  # one cache grew through all five


@once
def test_a_second_build_reuses_what_is_current(plain: Path) -> None:
    first = build_engines(plain, library=LIBRARY)
    assert build_engines(plain, library=LIBRARY).compiled == ()
    (first.folder / "segment_2.engine").write_bytes(PLAN + b"{}")
    (first.folder / "baseline.engine").unlink()
    assert build_engines(plain, library=LIBRARY).compiled == ("segment_2", "baseline")
    assert len(build_engines(plain, library=LIBRARY, force=True).compiled) == 5
    level = BuilderOptions(optimization_level=5)
    assert len(build_engines(plain, library=LIBRARY, options=level).compiled) == 5


def test_a_timing_cache_of_another_gpu_is_dropped(bundle: Path) -> None:
    if RTX:
        pytest.skip("RTX takes no timing cache")
    folder = folder_of(bundle)
    (folder / "timing.cache").write_bytes(b"other GPU")
    build_engines(bundle, library=LIBRARY, force=True)
    assert b"other" not in (folder / "timing.cache").read_bytes()


def test_an_engine_that_cannot_be_built_is_named(plain: Path) -> None:
    TRT.refuse_building = "segment_1"
    with pytest.raises(
        BuildError, match=r"segment_1.onnx: it cannot compile.*workspace.*--workspace"
    ):
        build_engines(plain, library=LIBRARY)
    # What was compiled before stays, and the next build goes on from there.
    TRT.refuse_building = ""
    TRT.built.clear()
    assert "segment_0" in build_engines(plain, library=LIBRARY).build.engines
    assert TRT.built == ["segment_1", "segment_2", "segment_3", "baseline"]


def test_an_engine_that_fell_back_to_float32_is_refused(tmp_path: Path) -> None:
    fixed = copied("fixed", tmp_path)  # with dynamic shapes the inspector tells no types
    TRT.silently_float32 = True
    with pytest.raises(BuildError, match="half precision was asked for, but no layer.*fp32$"):
        build_engines(fixed, library=LIBRARY)
    assert not (fixed / "engines").exists()


@pytest.mark.parametrize(
    ("name", "attributes", "warning"),
    [
        ("fixed", {}, ""),
        ("fixed", {"fused": True}, "one fused layer.* was not checked"),
        ("fp16", {}, "the batch varies: .* was not checked"),
        ("fixed", {"inner": ["FP16"] + ["FP32"] * 19}, "only 1 of the engine's 20 tensors"),
        ("fixed", {"slow_half": True}, r"half precision is not faster: .* ms, in float32 .*6\.1"),
        ("fp32", {}, ""),
    ],
)
def test_half_precision_that_may_be_float32_is_said(
    name: str, attributes: dict[str, object], warning: str, tmp_path: Path
) -> None:
    """TensorRT 8.6 takes half precision as an offer."""
    if not VERSION.startswith("8."):
        pytest.skip("its engines compute in the graph's types")
    for key, value in attributes.items():
        setattr(TRT, key, value)
    found = build_engines(copied(name, tmp_path), library=LIBRARY).build.warnings
    assert [text for text in found if warning and re.search(warning, text)] or not warning
    assert len(found) == (0 if not warning else 5 if "inner" in attributes else 1)


def test_the_speed_that_cannot_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not VERSION.startswith("8."):
        pytest.skip("its engines compute in the graph's types")
    missing = MissingDependency("cuda-python is not installed")
    monkeypatch.setattr("lgvit_edge.export.tensorrt.speed.open_cuda", raising(missing))
    warnings = build_engines(copied("fixed", tmp_path), library=LIBRARY).build.warnings
    assert any("not compared with float32: cuda-python is not" in text for text in warnings)


def raising(error: Exception) -> Callable[..., None]:
    def call(*_: object, **__: object) -> None:
        raise error

    return call


def test_memory_is_shared_on_a_jetson(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT itself would take three quarters of all memory, used or not."""
    board = SimpleNamespace(available_gb=4.0)
    monkeypatch.setattr(build.jetson, "detect", lambda: board)
    monkeypatch.setattr(build, "_check_board", lambda *_: None)
    build_engines(plain, library=LIBRARY)
    settings: dict[str, int] = plan(plain, "baseline")["settings"]  # type: ignore[assignment]
    assert (settings["WORKSPACE"], settings["TACTIC_DRAM"]) == (10**9, 3 * 10**9)


@once
def test_what_building_takes_is_said_before(plain: Path) -> None:
    said: list[str] = []

    def note(text: str) -> None:
        said.extend([text] if text.startswith("compiling") else [])

    options = BuilderOptions(workspace=64 << 20)
    build_engines(plain, library=LIBRARY, options=options, note=note)
    (first,) = said
    assert re.search(r"compiling 5 engines, .* at least 0\.\d MB .* up to 67 MB of scratch", first)
    assert "before" not in first  # nothing was measured yet
    build_engines(plain, library=LIBRARY, note=note)
    assert len(said) == 2 and re.search(r"they took \d+ s before", said[1])
    build_engines(plain, library=LIBRARY, note=note)
    assert len(said) == 2  # there is nothing to do


# In processes of their own.


def test_each_engine_is_compiled_in_a_process_of_its_own(
    plain: Path, elsewhere: Callable[..., None]
) -> None:
    if not (WHOLE or RTX):
        pytest.skip("alike in every version")
    TRT.built.clear()
    steps: list[str] = []
    built = build_engines(plain, library=LIBRARY, progress=lambda *step: steps.append(step[2]))
    assert len(built.compiled) == 5 and not TRT.built
    assert built.max_difference is not None and built.max_difference < 0.05
    assert "segment_0: building engine" in steps  # nothing was measured yet
    assert any(re.fullmatch(r"segment_1: about \d+ s left, building engine", s) for s in steps)
    assert RTX or (built.folder / "timing.cache").read_bytes() == b"....."


@once
def test_time_goes_on_while_tensorrt_says_nothing(
    plain: Path, elsewhere: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(apart, "python_starts_python", lambda: False)
        patch.setattr(TRT, "builds_for", 0.3)
        build_engines(plain, library=LIBRARY)
    elsewhere(builds_for=2.5)
    steps: list[str] = []

    def progress(done: int, total: int, text: str) -> None:
        steps.append(text)
        if text.startswith("segment_1"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engines(plain, library=LIBRARY, force=True, progress=progress)
    silent = [step for step in steps if step.endswith("building engine")]
    assert len(silent) >= 3  # begun, and after each second
    assert re.match(r"segment_0: about \d+ s left$", steps[0])  # as the build before took
    steps.clear()
    level = BuilderOptions(optimization_level=5)
    with pytest.raises(KeyboardInterrupt):
        build_engines(plain, library=LIBRARY, options=level, progress=progress)
    assert steps[0] == "segment_0"  # which is no measure for another level


@once
@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        (
            {"dies": 9},
            "killed, as .* when memory runs out.*--workspace-mb.*same command",
        ),
        ({"dies": 11}, r"segment_0.onnx: .* crashed \(SIGSEGV\); run: lgvit-edge doctor"),
        ({"refuse_building": "segment_0"}, "segment_0.onnx: it cannot compile.*--workspace-mb"),
    ],
)
def test_a_process_that_fails_says_why(
    attributes: dict[str, object], text: str, plain: Path, elsewhere: Callable[..., None]
) -> None:
    elsewhere(**attributes)
    with pytest.raises(BuildError, match=text):
        build_engines(plain, library=LIBRARY)
    assert not (plain / "engines").exists()  # a build as if there had been none


@once
def test_ctrl_c_ends_both_processes(plain: Path, elsewhere: Callable[..., None]) -> None:
    elsewhere(builds_for=60.0)
    children = Path(f"/proc/self/task/{os.getpid()}/children")

    def interrupt(done: int, total: int, text: str) -> None:
        if "building engine" in text:
            assert children.read_text().split()
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        build_engines(plain, library=LIBRARY, progress=interrupt)
    assert not children.read_text().split() and time.monotonic() - began < 30
    assert not (plain / "engines").exists()


@once
def test_the_other_process_ends_with_this_one(elsewhere: Callable[..., None]) -> None:
    ours, theirs = Pipe()
    command = apart.python_running("", str(theirs.fileno()))
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.DEVNULL)
    theirs.close()
    ours.close()  # as the system does when a process is killed
    assert process.wait(timeout=30) != 0


@once
def test_a_record_is_judged_under_the_lock(bundle: Path) -> None:
    folder = folder_of(bundle)
    TRT.off_by = 0.3
    with locked(folder / ".lock"), pytest.raises(BuildError, match="another build"):
        build_engines(bundle, library=LIBRARY)
    assert (folder / "build.json").exists()
    with pytest.raises(ParityError, match="--keep-fp32.*--fp32-accumulate.*--tolerance"):
        build_engines(bundle, library=LIBRARY)
    with locked(folder / ".lock"), pytest.raises(BuildError, match="another build"):
        build_engines(bundle, library=LIBRARY, tolerance=5.0)
    assert not (folder / "build.json").exists()


@once
def test_checking_keeps_no_baseline(bundle: Path) -> None:
    with open_trt(bundle) as session:
        before = fake_cuda.counts(FAKE)["memory"]
        session.check_parity()
        assert fake_cuda.counts(FAKE)["memory"] == before
        session.baseline_logits(session.prepare(frames(1)))
        loaded = fake_cuda.counts(FAKE)["memory"]
        session.check_parity()
        assert fake_cuda.counts(FAKE)["memory"] == loaded > before


def test_a_graph_in_the_wrong_precision_is_refused(plain: Path) -> None:
    """A float32 graph in a half-precision bundle would be silently slow."""
    opened = open_bundle(plain, verify=False)
    other = BUNDLES / "fp32" / "out"
    shutil.copy(other / "segments" / "segment_1.onnx", plain / "segments" / "segment_1.onnx")
    from lgvit_edge.export.tensorrt.builder import BuildTask, EngineBuilder
    from lgvit_edge.machine.tensorrt import TensorRT

    spec = opened.manifest.segments[1].spec
    with pytest.raises(BuildError, match="expected tensors .*float16.*TensorRT reads .*float32"):
        EngineBuilder(TensorRT(LIBRARY), BuilderOptions()).build(
            BuildTask(opened.path(spec.graph), spec, "float16", quantized=False, batch=(1, 4, 8))
        )


def test_capabilities_are_for_rtx(plain: Path) -> None:
    options = BuilderOptions(compute_capabilities=("8.6", "8.9"))
    if not RTX:
        with pytest.raises(ValueError, match="TensorRT-RTX only"):
            build_engines(plain, library=LIBRARY, options=options)
        assert not (plain / "engines").exists()
        return
    built = build_engines(plain, library=LIBRARY, options=options)
    assert built.folder.name == f"rtx-sm86-sm89-{VERSION}-fp16"
    assert plan(plain, "baseline")["settings"]["capabilities"] == ["SM86", "SM89"]  # type: ignore
    FAKE.fake_set_device(b"Orin", 8, 7)
    with pytest.raises(BackendError, match="compute capability 8.6, 8.9, this GPU .Orin. has 8.7"):
        open_trt(plain)


# What goes wrong when a bundle is opened.


def test_engines_of_another_version(bundle: Path) -> None:
    built = folder_of(bundle)
    record = json.loads((built / "build.json").read_text())
    (built / "build.json").write_text(json.dumps(record | {"version": "9.9.9"}))
    with pytest.raises(
        BackendError, match=f"with {LIBRARY} 9.9.9, found {VERSION}.*run: lgvit-edge"
    ):
        open_trt(bundle)


@once
def test_engines_of_another_gpu(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if RTX:
        pytest.skip("RTX engines are not tied to one GPU")
    FAKE.fake_set_device(b"Thor", 11, 0)
    with pytest.raises(BackendError, match="this GPU is Thor.*run: lgvit-edge build"):
        open_trt(bundle)
    monkeypatch.delenv("LGVIT_EDGE_BACKEND", raising=False)
    with pytest.warns(UserWarning, match="not running on TensorRT, because .*this GPU is Thor"):
        session = Session.open(bundle)
    assert session.describe()["backend"] in ("onnxruntime", "openvino")


@pytest.mark.parametrize(("graphs", "zero_copy"), WAYS)
def test_the_second_gpu(graphs: bool, zero_copy: bool, plain: Path) -> None:
    """TensorRT's objects are made, and called from any thread, with that GPU current."""
    FAKE.fake_set_driver(12060, 2)
    FAKE.fake_set_second(b"Fake Ada")
    built = build_engines(plain, library=LIBRARY, device="cuda:1", cuda_graphs=graphs)
    assert built.max_difference is not None and TRT.devices == {1}
    assert RTX or built.build.gpu == "Fake Ada"
    assert FAKE.fake_current() == 0  # of the caller's
    chosen = TensorRTOptions(binding="cuda-python", cuda_graphs=graphs, zero_copy=zero_copy)
    how = {"backend": "tensorrt", "tensorrt": chosen}
    with (
        Session.open(plain, device="cuda:1", **how) as trt,  # type: ignore[arg-type]
        Session.open(plain, backend="onnxruntime") as ort,
    ):
        assert (trt.describe()["device"], trt.describe()["gpu"]) == ("Fake Ada", 1)
        images = ort.prepare(frames(3))
        expected = ort.baseline_logits(images)
        FAKE.cuCtxSetCurrent(None)  # as another library may
        np.testing.assert_allclose(trt.baseline_logits(images), expected, atol=2e-3)
        with ThreadPoolExecutor(1) as thread:
            found = thread.submit(trt.exit_logits, frames(3)).result()
        np.testing.assert_allclose(found, ort.exit_logits(frames(3)), atol=2e-3)
    assert TRT.devices == {1}
    if RTX:
        return  # its engines are not tied to one GPU
    with pytest.raises(BackendError, match=r"on Fake Ada .*this GPU is Fake Orin .*build \S+$"):
        Session.open(plain, **how)  # type: ignore[arg-type]
    (folder_of(plain) / "build.json").unlink()
    build_engines(plain, library=LIBRARY)
    assert TRT.devices == {0, 1}
    with pytest.raises(BackendError, match=r"this GPU is Fake Ada.* --device cuda:1$"):
        Session.open(plain, device="cuda:1", **how)  # type: ignore[arg-type]


@once
def test_a_gpu_that_is_not_there(bundle: Path, tmp_path: Path) -> None:
    image = tmp_path / "x.png"
    Image.fromarray(frames(1)[0]).save(image)
    for line in (
        ("predict", "--engines", bundle, "--backend", "tensorrt", image),
        ("bench", "--engines", bundle, "--backend", "tensorrt"),
        ("build", bundle, "--builder", LIBRARY),
    ):
        done = CliRunner().invoke(app, [*map(str, line), "--device", "cuda:7"])
        assert "cuda:7 was asked for, found cuda:0 (Fake Orin)" in str(done.exception)
        done = CliRunner().invoke(app, [*map(str, line), "--device", "cpu"])
        assert "device must be one of cuda, cuda:N, found 'cpu'" in str(done.exception)


@once
def test_commands_take_a_gpu(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LGVIT_EDGE_BACKEND", raising=False)
    FAKE.fake_set_driver(12060, 2)
    FAKE.fake_set_second(b"Fake Ada")
    image = tmp_path / "x.png"
    Image.fromarray(frames(1)[0]).save(image)
    done = command("build", plain, "--builder", LIBRARY, "--device", "cuda:1")
    assert "verified on this GPU" in done.stdout
    assert f"next: lgvit-edge bench --engines {plain} --device cuda:1" in done.stdout
    command("predict", "--engines", plain, "--device", "cuda:1", image)
    record = tmp_path / "bench.json"
    command("bench", "--engines", plain, "--device", "cuda:1", "--rounds", 1, "--json", record)
    assert json.loads(record.read_text())["env"]["runtime"]["device"] == "Fake Ada"
    assert TRT.devices == {1}
    told = json.loads(command("doctor", "--json").stdout)["machine"]["gpus"]
    assert [gpu.split(",")[0] for gpu in told] == ["cuda:0 Fake Orin", "cuda:1 Fake Ada"]


@once
def test_one_bundle_serves_several_devices(plain: Path) -> None:
    if RTX:
        pytest.skip("RTX engines are not tied to one GPU")
    names = set()
    for name, major, minor in ((b"Orin", 8, 7), (b"Thor", 11, 0)):
        FAKE.fake_set_device(name, major, minor)
        names.add(build_engines(plain, library=LIBRARY).folder.name)
        with open_trt(plain) as session:
            assert session.describe()["device"] == name.decode()
    assert len(names) == 2


def test_the_best_backend_is_taken(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LGVIT_EDGE_BACKEND", raising=False)
    with Session.open(bundle) as session:
        assert session.describe()["backend"] == "tensorrt"
        assert session.describe()["library"] == LIBRARY


@pytest.mark.parametrize(
    ("harm", "text"),
    [
        (lambda f: os.truncate(f / "segment_1.engine", 40), "is not the engine that was built"),
        (lambda f: (f / "segment_1.engine").unlink(), "cannot read .*segment_1.engine"),
        (
            lambda f: shutil.copy(f / "segment_2.engine", f / "segment_1.engine"),
            "segment_1.engine is not the engine that was built",
        ),
        (lambda f: (f / "build.json").write_text("{"), "build.json is not JSON"),
        (lambda f: (f / "segment_1.engine").write_bytes(b""), "is not the engine that was built"),
        (lambda f: (f / "build.json").write_text('{"schema_version": 7}'), "found 7"),
    ],
)
def test_damaged_engines(bundle: Path, harm: object, text: str) -> None:
    folder = folder_of(bundle)
    harm(folder)  # type: ignore[operator]
    with pytest.raises((BackendError, BundleError), match=f"{text}.*run: lgvit-edge build"):
        open_trt(bundle)


def test_engines_swapped_with_their_records(bundle: Path) -> None:
    folder = folder_of(bundle)
    record = json.loads((folder / "build.json").read_text())
    found = record["engines"]
    found["segment_1"], found["segment_2"] = found["segment_2"], found["segment_1"]
    (folder / "build.json").write_text(json.dumps(record))
    with pytest.raises(BackendError, match="files were swapped.*run: lgvit-edge build"):
        open_trt(bundle)


def test_a_bundle_newer_than_its_engines(bundle: Path, tmp_path: Path) -> None:
    folder = folder_of(bundle)
    other = copied("fp32", tmp_path)
    (other / "engines").mkdir()
    shutil.move(folder, other / "engines")
    with pytest.raises(BackendError, match="the bundle is newer.*run: lgvit-edge build"):
        open_trt(other)


def test_an_interrupted_build_is_incomplete(plain: Path) -> None:
    TRT.refuse_building = "segment_3"
    with pytest.raises(BuildError):
        build_engines(plain, library=LIBRARY)
    with pytest.raises(BackendError, match="has no engines; run: lgvit-edge build"):
        open_trt(plain)


def test_engines_that_work_stay_until_new_ones_are_there(bundle: Path) -> None:
    TRT.refuse_building = "segment_3"
    with pytest.raises(BuildError):
        build_engines(bundle, library=LIBRARY, force=True)
    with open_trt(bundle) as session:
        assert session.check_parity() < 0.05


def test_a_record_without_an_engine(bundle: Path) -> None:
    record = json.loads((folder_of(bundle) / "build.json").read_text())
    del record["engines"]["segment_3"]
    (folder_of(bundle) / "build.json").write_text(json.dumps(record))
    with pytest.raises(BackendError, match="incomplete, segment_3 is missing.*run: lgvit-edge"):
        open_trt(bundle)


def test_a_library_that_does_not_start(bundle: Path, plain: Path) -> None:
    TRT.does_not_start = True
    failure = "does not start .*CUDA initialization failure.*run: lgvit-edge"
    with pytest.raises(BackendError, match=failure):
        build_engines(plain, library=LIBRARY)
    with pytest.raises(BackendError, match=failure):
        open_trt(bundle)


def test_rtx_engines_on_a_card_they_are_not_for(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not RTX:
        pytest.skip("RTX engines are compiled for kinds of cards")
    TRT.unsupported = True
    cure = "and Fake Orin has 8.7.*run: lgvit-edge build .* --builder tensorrt$"
    with pytest.raises(BackendError, match=cure):
        open_trt(bundle)
    said = command("build", bundle, "--builder", LIBRARY, "--force").output
    assert "do not run on this machine's Fake Orin (8.7); for this GPU add --builder" in said
    FAKE.fake_set_device(b"Fake Ada", 8, 9)
    cure = "not built for Fake Ada; add --capability 8.9.*run: lgvit-edge build"
    with pytest.raises(BackendError, match=cure):
        open_trt(bundle)
    monkeypatch.delenv("LGVIT_EDGE_BACKEND", raising=False)
    with pytest.warns(UserWarning, match="not running on TensorRT"):
        Session.open(bundle).close()
    done = command("build", bundle, "--builder", LIBRARY, "--force")  # for others, it builds
    assert "not run: none of the engines" in done.stdout


def test_the_engines_just_built_are_those_that_are_run(plain: Path) -> None:
    if not RTX:
        pytest.skip("only RTX has several builds for one GPU")
    FAKE.fake_set_device(b"Fake Ada", 8, 9)
    build_engines(plain, library=LIBRARY)
    wrong = "segment_0 diverges|segment 0 diverges"
    TRT.off_by = 0.3
    with pytest.raises(ParityError, match=wrong):
        command("build", plain, "--builder", LIBRARY, "--capability", "8.9")


def test_boards_of_one_name_are_told_apart(bundle: Path) -> None:
    """The driver calls every Orin "Orin"."""
    if RTX:
        pytest.skip("RTX engines are not tied to one GPU")
    assert "-8mp-" in folder_of(bundle).name
    FAKE.fake_set_processors(16)
    with pytest.raises(BackendError, match=r"\(8 multiprocessors\), this GPU is Fake Orin \(16\)"):
        open_trt(bundle)


def test_a_closed_session_says_so(bundle: Path) -> None:
    session = open_trt(bundle, speculate=True)
    session.policy = policy.FixedExit(1)
    session.predict(frames(1)[0])  # leaves a segment running
    session.close()
    session.close()
    with pytest.raises(BackendError, match="the session is closed"):
        session.predict(frames(1)[0])


def test_a_policy_that_does_not_fit_loads_nothing(bundle: Path) -> None:
    with pytest.raises(UsageError, match="an exit in 1..4"):
        Session.open(bundle, backend="tensorrt", policy=policy.FixedExit(9))


def test_a_plan_that_tensorrt_refuses(bundle: Path) -> None:
    folder = folder_of(bundle)
    record = json.loads((folder / "build.json").read_text())
    from lgvit_edge.bundle.plain_files import sha256

    for name in ("segment_0", "baseline"):
        (folder / f"{name}.engine").write_bytes(b"a later format")
        digest = sha256(folder / f"{name}.engine")
        record["engines"][name] |= {"sha256": digest, "bytes": len(b"a later format")}
    (folder / "build.json").write_text(json.dumps(record))
    reason = "refused by .*MALFORMED_ENGINE" if RTX else "cannot load .*magic tag"
    with pytest.raises(BackendError, match=f"{reason}.*run: lgvit-edge build"):
        open_trt(bundle)


def test_an_engine_with_other_tensors(bundle: Path) -> None:
    folder = folder_of(bundle)
    record = json.loads((folder / "build.json").read_text())
    swapped = (folder / "segment_3.engine").read_bytes()
    (folder / "segment_1.engine").write_bytes(swapped)
    found = record["engines"]
    found["segment_1"] |= {key: found["segment_3"][key] for key in ("sha256", "bytes")}
    (folder / "build.json").write_text(json.dumps(record))
    with pytest.raises(BackendError, match="expected tensors .*hidden_out.*run: lgvit-edge build"):
        open_trt(bundle)


def test_an_engine_of_another_precision(bundle: Path, compiled: Path) -> None:
    folder, other = folder_of(bundle), folder_of(compiled / "fp32")
    record, theirs = (json.loads((f / "build.json").read_text()) for f in (folder, other))
    shutil.copy(other / "segment_1.engine", folder / "segment_1.engine")
    wrong = {key: theirs["engines"]["segment_1"][key] for key in ("sha256", "bytes")}
    record["engines"]["segment_1"] |= wrong
    (folder / "build.json").write_text(json.dumps(record))
    with pytest.raises(BackendError, match="expected .*float16.*found .*float32.*lgvit-edge build"):
        open_trt(bundle)


def test_no_gpu(bundle: Path) -> None:
    FAKE.fake_set_driver(12060, 0)
    with pytest.raises(BackendError, match="none here.*lgvit-edge doctor"):
        open_trt(bundle)
    with Session.open(bundle) as session:
        assert session.describe()["backend"] == "onnxruntime"
    if not RTX:
        with pytest.raises(BackendError, match="there is no NVIDIA GPU.*lgvit-edge build"):
            build_engines(bundle, library=LIBRARY, force=True)


def test_a_bundle_without_engines(plain: Path) -> None:
    with pytest.raises(BackendError, match="has no engines; run: lgvit-edge build"):
        open_trt(plain)


# Exits that the device decides.


def rules(ort: Session, images: list[NDArray[np.uint8]]) -> list[policy.Policy]:
    """Policies with thresholds amid these images' scores, so that they leave at every exit."""
    logits = ort.exit_logits(images)[:, :-1]
    odds = np.exp(logits / 2 - logits.max(-1, keepdims=True) / 2)
    odds /= odds.sum(-1, keepdims=True)
    scores = {"confidence": odds.max(-1), "entropy": -(odds * np.log(odds)).sum(-1)}
    middle = {name: tuple(map(float, np.sort(s, 0)[len(s) // 2])) for name, s in scores.items()}
    return [
        policy.Confidence(middle["confidence"], temperature=2.0),
        policy.Entropy(middle["entropy"], temperature=(2.0,) * len(middle["entropy"])),
        policy.Never(),
        *(policy.FixedExit(exit) for exit in (1, 3, 4, 2)),
    ]


@once
@pytest.mark.parametrize("zero_copy", [False, True])
@pytest.mark.parametrize("wait", ["spin", "block", "hybrid"])
def test_the_device_decides_as_the_host_does(wait: str, zero_copy: bool, compiled: Path) -> None:
    bundle = compiled / "fixed"
    images = frames(6)
    with (
        open_trt(bundle, device_exit=True, wait=wait, zero_copy=zero_copy) as trt,
        Session.open(bundle, backend="onnxruntime") as ort,
    ):
        exits = set()
        for rule in rules(ort, images):
            trt.policy = ort.policy = rule
            assert trt.describe()["device_exit"] is True
            for image in images:
                before = FAKE.fake_launches()
                a, b = trt.predict(image), ort.predict(image)
                assert (a.exit, a.class_index) == (b.exit, b.class_index)
                assert a.confidence == b.confidence  # of the same logits, bit for bit
                assert FAKE.fake_launches() == before + 1  # of all segments
                exits.add((rule.name, a.exit))
        assert len(exits) >= 8
        np.testing.assert_array_equal(trt.exit_logits(images), ort.exit_logits(images))


@once
def test_where_they_differ_the_host_has_the_last_word(compiled: Path) -> None:
    """As where rounding decides: the device stops too early, or goes on for nothing."""
    bundle = compiled / "fixed"
    with (
        open_trt(bundle, device_exit=True) as trt,
        Session.open(bundle, backend="onnxruntime") as ort,
    ):
        for mine, device in ((3, 1), (1, 4), (4, 2), (2, 2), (4, 1)):
            trt.policy = ort.policy = policy.FixedExit(mine)
            trt.chain.follow(policy.FixedExit(device).start(3).rule())  # type: ignore[attr-defined]
            before = FAKE.fake_launches()
            for image in frames(3):
                a, b = trt.predict(image), ort.predict(image)
                assert (a.exit, a.confidence) == (b.exit, b.confidence)
            assert FAKE.fake_launches() - before == 3 * (1 + max(0, mine - device))


@once
def test_policies_with_a_memory_are_the_hosts(compiled: Path) -> None:
    why = "the host decides where images stop.*decides is more than one exit's confidence"
    bundle = compiled / "fixed"
    with Session.open(bundle, backend="onnxruntime") as ort:
        for rule in (policy.Patience(2), policy.Ensemble(0.4), policy.PatientConfidence(0.2, 2)):
            with pytest.warns(UserWarning, match=why):
                trt = Session.open(
                    bundle,
                    backend="tensorrt",
                    policy=rule,
                    tensorrt=TensorRTOptions(device_exit=True, binding="cuda-python"),
                )
            ort.policy = rule
            with trt:
                for image in frames(5):
                    a, b = trt.predict(image), ort.predict(image)
                    assert (a.exit, a.confidence) == (b.exit, b.confidence)
                assert trt.describe()["device_exit"] is False
                assert "more than one exit" in trt.describe()["not_on_device"]
                trt.policy = policy.Confidence(0.3)
                assert trt.describe()["device_exit"] is True
                with pytest.warns(UserWarning, match=why):
                    trt.policy = TargetRate(1e4)
                trt.predict(frames(1)[0])
                trt.policy = "never"


@once
def test_the_host_decides_where_frames_before_count(compiled: Path) -> None:
    """And the device does again where they do not."""
    bundle, why = compiled / "fixed", "the host decides where images stop"
    with (
        open_trt(bundle, device_exit=True) as trt,
        Session.open(bundle, backend="onnxruntime") as ort,
    ):
        trt.policy = ort.policy = rules(ort, frames(6))[0]
        mine, theirs = Memory(4), Memory(4)
        for image in frames(6):
            with pytest.warns(UserWarning, match=why):
                (a,) = trt.run(trt.prepare([image]), starts=[0.0], memories=[mine])
            assert trt.describe()["device_exit"] is False
            (b,) = ort.run(ort.prepare([image]), starts=[0.0], memories=[theirs])
            assert (a.exit, a.class_index, a.confidence) == (b.exit, b.class_index, b.confidence)
            c, d = trt.predict(image), ort.predict(image)
            assert trt.describe()["device_exit"] is True
            assert (c.exit, c.confidence) == (d.exit, d.confidence)
        assert mine.frames == theirs.frames > 1


@once
def test_a_deadline_ends_what_the_device_would_go_on_with(compiled: Path) -> None:
    with open_trt(compiled / "fixed", device_exit=True) as trt:
        trt.policy = policy.Never()
        trt.warm_up()
        image = frames(1)[0]
        assert trt.predict(image, deadline_ms=1e-6).exit == 1
        assert trt.predict(image).exit == 4


@once
def test_what_exits_on_the_device_need(bundle: Path, compiled: Path) -> None:
    with pytest.raises(BackendError, match="one image at a time, found batches of up to 8"):
        open_trt(bundle, device_exit=True)
    FAKE.fake_set_driver(12040, 1)
    with pytest.raises(BackendError, match=r"CUDA 12.6 or newer, found 12.4; .*JetPack 6.1"):
        open_trt(compiled / "fixed", device_exit=True)
    for wrong in ({"speculate": True}, {"cuda_graphs": False}):
        with pytest.raises(UsageError, match="leaves nothing to speculate on, found"):
            TensorRTOptions(device_exit=True, **wrong)


@once
@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (lambda: FAKE.fake_set_host_nodes(1), "may hold kernel, .*, found host function"),
        (lambda: FAKE.fake_fail(b"cuGraphAddNode", 801, 2), "NOT_SUPPORTED"),
        (lambda: FAKE.fake_fail(b"cuGraphConditionalHandleCreate", 801, 0), "NOT_SUPPORTED"),
        (lambda: FAKE.fake_fail(b"cuModuleLoadData", 222, 0), "UNSUPPORTED_PTX_VERSION"),
        (lambda: FAKE.fake_set_deaf(1), "its logits differ by .* from the host's"),
        (lambda: FAKE.fake_set_idle(1), "ended without the logits of segment_0"),
    ],
)
def test_without_conditional_nodes_the_host_decides(
    fault: Callable[[], None], why: str, compiled: Path
) -> None:
    fault()
    with pytest.warns(UserWarning, match=f"the host decides where images stop.*{why}"):
        trt = open_trt(compiled / "fixed", device_exit=True)
    with trt, Session.open(compiled / "fixed", backend="onnxruntime") as ort:
        assert trt.describe()["device_exit"] is False and trt.describe()["not_on_device"]
        images = frames(2)
        np.testing.assert_array_equal(trt.exit_logits(images), ort.exit_logits(images))


@once
def test_a_device_that_stops_elsewhere_is_found(
    compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow, second = device_exit.DeviceExit.follow, policy.FixedExit(2).start(3).rule()
    monkeypatch.setattr(device_exit.DeviceExit, "follow", lambda self, _: follow(self, second))
    with pytest.warns(UserWarning, match="the host decides .* stopped at exit 2, expected 4"):
        open_trt(compiled / "fixed", device_exit=True).close()


@once
def test_a_device_that_never_stops_is_found_where_scores_are_alike() -> None:
    """As those of random weights with many classes: no threshold parts them safely."""
    images = np.linspace(0, 1e-6, 6, dtype=np.float32)[:, None]

    def run(image: NDArray[Any], _: Rule | None) -> tuple[NDArray[np.float32], int]:
        return np.outer(np.arange(3), [image[0, 0], 0, 0, 0]).astype(np.float32), 2

    with pytest.raises(BackendError, match="stopped at exit 3, expected 1"):
        device_exit.check_decisions(run, images, 1e-4)


@once
def test_one_sample_and_one_early_exit_are_enough() -> None:
    """A single score leaves no room for a threshold between scores."""
    logits = np.array([[1, 0], [2, 0]], np.float32)
    rules: list[Rule | None] = []

    def run(_: NDArray[Any], rule: Rule | None) -> tuple[NDArray[np.float32], int]:
        rules.append(rule)
        score = None if rule is None else rule.measure.sureness(rule.measure.of(logits[:1])[0])
        stops = rule is not None and score > rule.measure.sureness(rule.thresholds[0])
        return logits, 0 if stops else 1

    device_exit.check_decisions(run, np.zeros((1, 1), np.float32), 1e-4)
    assert len(rules) == 5


@once
def test_a_refused_launch_spoils_no_later_one(compiled: Path) -> None:
    with open_trt(compiled / "fixed", device_exit=True) as trt:
        trt.policy = policy.FixedExit(2)
        image = frames(1)[0]
        before = trt.predict(image)
        FAKE.fake_fail(b"cuGraphLaunch", 2, 0)
        with pytest.raises(BackendError, match="cuGraphLaunch failed"):
            trt.predict(frames(2)[1])
        FAKE.fake_fail(b"", 0, 0)
        after = trt.predict(image)
        assert (after.exit, after.confidence) == (before.exit, before.confidence)


@once
def test_a_graph_that_ends_without_an_answer(compiled: Path) -> None:
    with open_trt(compiled / "fixed", device_exit=True) as trt:
        FAKE.fake_set_idle(1)
        with pytest.raises(BackendError, match="ended without the logits of segment_0; open"):
            trt.predict(frames(1)[0])


@once
def test_an_interrupted_launch_costs_one_image(
    compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted by the host and not by the device."""
    with open_trt(compiled / "fixed", device_exit=True) as trt:
        expected = trt.predict(frames(1)[0])
        with monkeypatch.context() as patch:
            patch.setattr(trt.chain._cuda, "launch", lambda graph: 1 / 0)  # type: ignore[attr-defined]
            with pytest.raises(ZeroDivisionError):
                trt.predict(frames(1)[0])
        with pytest.raises(BackendError, match="ended without the logits"):
            trt.predict(frames(1)[0])
        again = trt.predict(frames(1)[0])
        assert (again.exit, again.confidence) == (expected.exit, expected.confidence)


# What goes wrong while it runs.


def test_a_false_return_from_execution(bundle: Path) -> None:
    TRT.refuse_execution = "segment_2"
    with pytest.raises(BackendError, match="the engine of segment_2 does not run"):
        open_trt(bundle)


def test_a_failed_recording_costs_time_alone(bundle: Path) -> None:
    with open_trt(bundle) as session:
        images = frames(1)
        expected = session.exit_logits(images)
    FAKE.fake_fail(b"cuStreamEndCapture", 901, 0)
    slower = r"segment_0, 1 row; .*segment_3, 8 rows: without a CUDA graph, .*901.*--no-cuda"
    with pytest.warns(UserWarning, match=slower):
        session = open_trt(bundle)
    FAKE.fake_fail(b"", 0, 0)
    with session:
        assert np.array_equal(session.exit_logits(images), expected)
        described = session.describe()
    assert described["cuda_graphs"] == 0
    listed = list(described["not_recorded"])
    assert listed[0] == "segment_0, 1 row" and len(listed) == 4 * len(padded_sizes(8))
    with open_trt(bundle, cuda_graphs=False) as session:
        assert session.describe()["not_recorded"] == {}


def test_nothing_is_collected_while_a_graph_is_recorded(bundle: Path) -> None:
    TRT.collecting.clear()
    with open_trt(bundle):
        runs = len(TRT.collecting)
        assert TRT.collecting == [True, False] * (runs // 2) and gc.isenabled()


def test_what_cannot_be_recorded_is_launched(bundle: Path) -> None:
    if not RTX:
        pytest.skip("only RTX says whether a stream can be recorded")
    TRT.capturable = False
    with pytest.warns(UserWarning, match="without a CUDA graph.*says that it cannot be recorded"):
        session = open_trt(bundle)
    with session:
        session.predict(frames(1)[0])
        told = session.describe()
        assert told["cuda_graphs"] == 0
        assert "cannot be recorded" in told["not_recorded"]["segment_0, 1 row"]


@pytest.mark.parametrize("after", [0, 2, 5])
def test_out_of_memory(bundle: Path, after: int) -> None:
    FAKE.fake_fail(b"cuMemAlloc", 2, after)
    with pytest.raises(BackendError, match="OUT_OF_MEMORY.*smaller --batch"):
        open_trt(bundle)


def test_a_fault_on_the_device(bundle: Path) -> None:
    with open_trt(bundle, wait="block") as session:
        FAKE.fake_fail(b"cuEventSynchronize", 719, 0)
        with pytest.raises(BackendError, match="LAUNCH_FAILED"):
            session.predict(frames(1)[0])


# Commands.


def command(*arguments: object) -> Result:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_new_engines_are_run_on_the_samples(plain: Path) -> None:
    done = command("build", plain, "--builder", LIBRARY, "--json")
    found = json.loads(done.stdout)
    assert found["compiled"] == ["segment_0", "segment_1", "segment_2", "segment_3", "baseline"]
    assert 0 < found["max_difference"] < 0.05
    done = command("build", plain, "--builder", LIBRARY)
    assert "verified on this GPU, segments and baseline, against PyTorch's" in done.stdout


def test_engines_that_compute_something_else_are_noticed(plain: Path) -> None:
    TRT.off_by = 0.3
    for _ in range(2):  # nobody takes them for current
        cures = "segment 0 diverges from PyTorch on this device.*--keep-fp32.*--tolerance"
        with pytest.raises(ParityError, match=cures) as rejected:
            build_engines(plain, library=LIBRARY)
        # TensorRT 8 promises nothing for the casts that it writes.
        assert ("--fp32-accumulate" in str(rejected.value)) is not VERSION.startswith("8.")
    with pytest.raises(BackendError, match="has no engines"):
        open_trt(plain)
    (folder,) = {path.parent for path in plain.glob("engines/*/build.rejected.json")}
    built = build_engines(plain, library=LIBRARY, tolerance=5.0)
    assert engines.read_build(built.folder).tolerance == 5.0
    build_engines(plain, library=LIBRARY)  # what was accepted stays so
    assert (built.folder / "build.json").exists()
    assert built.compiled == () and 0.2 < built.max_difference < 5.0
    assert not (folder / "build.rejected.json").exists()
    open_trt(plain).close()


def test_what_is_exact_already_is_not_told_to_be_so(tmp_path: Path) -> None:
    """An export refuses --keep-fp32 there."""
    TRT.off_by = 0.3
    with pytest.raises(ParityError, match="segment 0 diverges.*--tolerance") as rejected:
        build_engines(copied("fp32", tmp_path), library=LIBRARY)
    assert "--keep-fp32" not in str(rejected.value)


@pytest.mark.parametrize("tolerance", [0.0, -1.0, math.inf, math.nan])
def test_a_tolerance_that_is_none(plain: Path, tolerance: float) -> None:
    with pytest.raises(UsageError, match="the tolerance must be a positive number"):
        build_engines(plain, library=LIBRARY, tolerance=tolerance)


@once
def test_bench_and_predict(bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(frames(1)[0]).save(tmp_path / "x.png")
    for options in (
        ("--speculate", "--wait", "spin", "--zero-copy"),
        ("--no-cuda-graphs", "--wait", "block"),
    ):
        done = command(
            *("bench", "--engines", bundle, "--backend", "tensorrt", "--rounds", 2),
            *("--json", tmp_path / "bench.json", *options),
        )
        assert "efficiency" in done.stdout
        found = json.loads((tmp_path / "bench.json").read_text())["env"]["runtime"]
        assert found["backend"] == "tensorrt" and found["engines"] == folder_of(bundle).name
        assert (found["cuda_graphs"] > 0, found["speculate"]) == (
            "--no-cuda-graphs" not in options,
            "--speculate" in options,
        )
        assert found["zero_copy"] is ("--zero-copy" in options)
    assert "x.png" in command("predict", "--engines", bundle, tmp_path / "x.png").stdout


def profiled(bundle: Path, status: int = 0) -> tuple[dict[str, Any], str]:
    """The record of ``profile``, if there is one, and what was said."""
    file = bundle.parent / "layers.json"
    command = ["profile", "--engines", str(bundle), "--backend", "tensorrt", "--runs", "3"]
    result = CliRunner().invoke(app, [*command, "--json", str(file)])
    said = " ".join(f"{result.output} {result.exception or ''}".split())
    assert (result.exit_code != 0) is bool(status), said
    return json.loads(file.read_text()) if file.exists() else {}, said


@pytest.mark.parametrize("name", ["fp16", "fixed"])
def test_layers_are_timed_and_described_by_the_inspector(name: str, compiled: Path) -> None:
    record, said = profiled(compiled / name)
    assert record["env"]["runtime"]["cuda_graphs"] > 0 == record["env"]["profiler"]["cuda_graphs"]
    assert "with TensorRT's profiler and without CUDA graphs the chain takes" in said
    layers = record["segments"][1]["layers"]
    assert [layer["ms"] for layer in layers] == [0.25 * (i + 1) for i in range(len(layers))]
    assert {layer["kind"] for layer in layers} == {"gemm", "kgen"}
    assert {layer["block"] for layer in layers} == {"2", "head", None}  # None: a cast at the end
    assert layers[3]["how"] == "tactic_3, Row major linear FP16 format"  # of a batch of 1
    joined = "blocks.2.norm1/" in layers[0]["name"]
    assert joined if VERSION.startswith("8.") else layers[0]["name"].startswith("__myl_")
    assert {"1", "2", "3", "4"} < {layer["block"] for layer in record["baseline"]["layers"]}


def test_layers_that_the_inspector_only_names_are_timed_all_the_same(bundle: Path) -> None:
    TRT.describes_layers = False
    record, said = profiled(bundle)
    layers = record["segments"][0]["layers"]
    assert {layer["kind"] for layer in layers} == {"not described"} and "not described" in said
    assert not any(layer["how"] for layer in layers) and layers[0]["ms"] == 0.25


@once
def test_a_profiler_that_is_told_nothing(bundle: Path) -> None:
    TRT.reports_layers = False
    assert "reports no layer times of segment_0: " in profiled(bundle, status=1)[1]


@once
def test_a_bundle_without_engines_is_not_profiled(plain: Path) -> None:
    assert "has no engines; run: lgvit-edge build" in profiled(plain, status=1)[1]


@once
def test_the_steps_of_a_device_report(bundle: Path, compiled: Path) -> None:
    from lgvit_edge.benchmarks.device.measure import run
    from lgvit_edge.runtime.backends.registry import backend_of

    request = {"engines": str(bundle), "backend": "tensorrt", "device": None, "rounds": 2}
    ways = run(request | {"step": "ways"})["ways"]
    assert set(ways) == set(backend_of("tensorrt").ways) - {"copies"}  # the default of this card
    assert "one image at a time" in ways.pop("exits on the device")["refused"]
    assert all(len(row) == 4 and min(row) > 0 for times in ways.values() for row in times.values())
    single = run(request | {"step": "ways", "engines": str(compiled / "fixed")})["ways"]
    assert min(single["exits on the device"]["ms"]) > 0
    found = run(request | {"step": "parity"})
    assert found["within"] and found["graphs"][-1] == "baseline"
    assert len(found["differences"]) == len(found["batch_sizes"])
    assert run(request | {"step": "soak", "seconds": 0.2})["images"] >= 24


def test_rtx_keeps_what_it_compiled(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of(bundle)
    (folder / "runtime.cache").unlink(missing_ok=True)
    open_trt(bundle).close()
    assert (folder / "runtime.cache").exists() is RTX
    assert ("compiles 4 engines for" in capsys.readouterr().err) is RTX  # which takes a while
    open_trt(bundle).close()
    assert "compiles" not in capsys.readouterr().err


def test_what_rtx_compiles_for_a_signed_bundle_lies_elsewhere(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A file more in the bundle would end its signature."""
    if not RTX:
        pytest.skip("RTX alone compiles at run time")
    monkeypatch.setenv("LGVIT_EDGE_CACHE", str(tmp_path / "cache"))
    (folder_of(bundle) / "runtime.cache").unlink(missing_ok=True)
    pair = key_pair(tmp_path / "k")
    root = signed_copy(bundle, tmp_path / "out", pair)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    for keys in ([pair.public], None):
        for said in (True, False):
            open_trt(root, trusted_keys=keys).close()
            found = capsys.readouterr().err
            assert ("later starts take them from" in found) is said, found
            assert str(tmp_path / "cache") in found or not said
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert len(list((tmp_path / "cache").glob("*/*-runtime.cache"))) == 2  # one for each


@once
def test_signed_engines_alone_are_run(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = key_pair(tmp_path / "k")
    root = signed_copy(bundle, tmp_path / "out", pair)
    with open_trt(root, trusted_keys=[pair.public]) as session:
        assert session.predict(frames(1)[0]).label in "abcde"
    for name in ("segment_0.engine", "build.json"):
        path = folder_of(root) / name
        true = path.read_bytes()
        path.write_bytes(true.replace(b"0", b"1", 1))
        with pytest.raises(BundleError, match=f"{name} is not the file that was signed"):
            open_trt(root, trusted_keys=[pair.public])
        path.write_bytes(true)
    other = folder_of(root).with_name("another")
    shutil.copytree(folder_of(root), other)  # as a stranger adds some, who writes the record too
    with pytest.raises(BundleError, match="engines/another/.* is not covered by the signature"):
        open_trt(root, trusted_keys=[pair.public])
    shutil.rmtree(other)
    capsys.readouterr()
    build_engines(root, library=LIBRARY, force=True)
    assert "was signed and is changed now" in capsys.readouterr().err
    with pytest.raises(BundleError, match="is not the file that was signed"):
        open_trt(root, trusted_keys=[pair.public])


@once
def test_another_bundle_between_two_frames(bundle: Path, plain: Path, tmp_path: Path) -> None:
    image = frames(1)[0]
    whole = copied("fp32", tmp_path)
    with open_trt(bundle) as session:
        first = session.predict(image)
        with pytest.raises(BackendError, match=f"{plain} has no engines; run: lgvit-edge build"):
            session.reload(plain)
        assert session.predict(image).bundle == first.bundle
        TRT.off_by = 0.3
        build_engines(whole, library=LIBRARY, tolerance=5.0)
        session.reload(whole)  # by the tolerance that somebody accepted for its engines
        assert session.predict(image).bundle != first.bundle
        TRT.off_by = 0.0
        session.reload(bundle)
        again = session.predict(image)
    assert (again.exit, again.class_index) == (first.exit, first.class_index)


def test_the_record_can_be_read_again(bundle: Path) -> None:
    built = build_engines(bundle, library=LIBRARY)
    assert engines.find_builds(bundle) == [(built.folder, built.build)]
    assert built.max_difference is not None and built.max_difference < 0.05
