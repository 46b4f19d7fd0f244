"""Export: what is written, what is verified, and what failure leaves behind."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from small import swin, vit

from lgvit_edge._support.files import locked
from lgvit_edge._support.terminal import held_interrupts
from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.bundle.directory import add_to_manifest, open_bundle, writing
from lgvit_edge.bundle.layout import WEIGHTS
from lgvit_edge.errors import BundleError, ExportError, ParityError, UsageError
from lgvit_edge.export import ExportOptions, export_bundle
from lgvit_edge.export import bundle as exporter
from lgvit_edge.export.graph import Part, WeightStore, trace
from lgvit_edge.export.source import models_to_export
from lgvit_edge.model import (
    LGViT,
    baseline,
    block_macs,
    count_parameters,
    cut,
    example_input,
    model_costs,
    save_checkpoint,
)
from lgvit_edge.model.randomised import randomised
from lgvit_edge.policies import Confidence
from lgvit_edge.policies.scores import difference
from lgvit_edge.runtime import Session

pytestmark = pytest.mark.slow


def test_every_exit_matches_pytorch(bundle: Path, exported_model: LGViT) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), np.uint8)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        expected = exported_model.exit_logits(pixels).numpy()
    with Session.open(bundle) as session:
        assert np.abs(session.exit_logits(list(frames)) - expected).max() < 1e-4
        first = session.prepare(frames[:1])
        assert np.abs(session.baseline_logits(first) - expected[:1, -1]).max() < 1e-4


def test_float_input_gives_the_same_answers(tmp_path: Path, quick_model: LGViT) -> None:
    export_bundle(quick_model, tmp_path / "out", ExportOptions(input="float32"))
    frame = np.random.default_rng(2).integers(0, 256, (32, 32, 3), np.uint8)
    with torch.no_grad():
        pixels = torch.from_numpy(frame[None]).permute(0, 3, 1, 2) / 127.5 - 1
        expected = quick_model.exit_logits(pixels).numpy()
    with Session.open(tmp_path / "out") as session:
        assert session.prepare([frame]).of(0).dtype == np.float32
        assert np.abs(session.exit_logits([frame]) - expected).max() < 1e-4


def test_manifest_describes_the_graphs(bundle: Path, exported_model: LGViT) -> None:
    manifest = open_bundle(bundle).manifest
    assert [s.head for s in manifest.segments] == ["lph", "lph", "gah", "final"]
    assert [s.last_block for s in manifest.segments] == [1, 2, 3, 4]
    assert manifest.baseline.parameters == count_parameters(exported_model.backbone)
    config = exported_model.config
    pixels = 16 * 3 * config.patch_size**2 * config.hidden_size
    classifier = config.hidden_size * config.num_classes
    assert manifest.published_macs == sum(block_macs(config)) + pixels + classifier
    assert manifest.baseline.macs == model_costs(exported_model).baseline < manifest.published_macs
    for segment in manifest.segments:
        graph = onnx.load(bundle / segment.spec.graph.file, load_external_data=False).graph
        assert [t.name for t in graph.input] == [t.name for t in segment.spec.inputs]
        assert [t.name for t in graph.output] == [t.name for t in segment.spec.outputs]


def test_graphs_keep_whole_operators_and_no_traces_of_our_disk(bundle: Path) -> None:
    model = onnx.load(bundle / "baseline.onnx", load_external_data=False)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("LayerNormalization") == 4 * 2 + 1
    assert kinds.count("Softmax") == 4
    assert b"lgvit_edge" not in (bundle / "baseline.onnx").read_bytes()


@pytest.mark.parametrize("file", ["baseline.onnx", "segments/segment_3.onnx"])
def test_the_last_blocks_mlp_sees_the_class_token_alone(bundle: Path, file: str) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(bundle / file))
    tokens = {
        value.name: value.type.tensor_type.shape.dim[1].dim_value
        for value in model.graph.value_info
        if len(value.type.tensor_type.shape.dim) == 3
    }
    mlps = {
        node.name.split(".fc1")[0]: tokens[node.output[0]]
        for node in model.graph.node
        if ".fc1/MatMul" in node.name
    }
    expected = dict.fromkeys([f"blocks.{number}" for number in (1, 2, 3, 4)], 17)
    assert mlps == {k: v for k, v in expected.items() if k in mlps} | {"blocks.4": 1}
    assert len(mlps) == (4 if file == "baseline.onnx" else 1)


def test_gelu_becomes_one_operator_from_opset_20(tmp_path: Path, quick_model: LGViT) -> None:
    export_bundle(quick_model, tmp_path / "out", ExportOptions(opset=20))
    model = onnx.load(tmp_path / "out" / "baseline.onnx", load_external_data=False)
    assert [node.op_type for node in model.graph.node].count("Gelu") == 2


def test_bundle_is_as_large_as_the_weights(tmp_path: Path) -> None:
    config = LGViTConfig("vit", 32, 8, 256, 3, 4, 1024, 10)
    from lgvit_edge.architecture.placement import default_heads

    model = LGViT(config.replace(exits=default_heads([1, 2]))).eval()
    export_bundle(model, tmp_path / "out")
    size = (tmp_path / "out" / WEIGHTS).stat().st_size
    assert size < 1.1 * 4 * count_parameters(model)


def test_weight_store_keeps_equal_content_once(tmp_path: Path) -> None:
    store = WeightStore(tmp_path / "weights.bin")
    offsets = [store.place(content) for content in (b"a" * 5000, b"b" * 10, b"a" * 5000)]
    assert offsets == [0, 8192, 0]
    assert (tmp_path / "weights.bin").read_bytes()[8192:] == b"b" * 10


def put_in_place(out: Path, bundle: Path) -> None:
    """What an export does once all is verified: the bundle takes the place of the old one."""
    with writing(out) as staging:
        shutil.copytree(bundle, staging, dirs_exist_ok=True)


@contextlib.contextmanager
def exported_wrong(name: str, bias: Callable[[torch.nn.Module], torch.Tensor]) -> Iterator[None]:
    """Graph ``name`` is exported with this bias a little off, and PyTorch keeps the right one."""
    original = exporter.trace

    def sabotage(parts: list[Part], **rest: Any) -> list[Any]:
        parts = [dataclasses.replace(part, module=copy.deepcopy(part.module)) for part in parts]
        (wrong,) = (part for part in parts if Path(part.file).name == name)
        bias(wrong.module).data += 0.05
        return original(parts, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "trace", sabotage)
        yield


def test_a_diverging_segment_is_named_and_nothing_is_written(
    tmp_path: Path, exported_model: LGViT
) -> None:
    wrong = r"segment 2 diverges .*'logits'.* 0\.0.*tolerance 0\.0001.*--tolerance"
    with (
        exported_wrong("segment_2.onnx", lambda m: m.tail.classifier.linears[0].bias),  # type: ignore
        pytest.raises(ParityError, match=wrong),
    ):
        export_bundle(exported_model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_diverging_hidden_state_is_named(tmp_path: Path, quick_model: LGViT) -> None:
    wrong = r"segment 0 diverges .*'hidden_out'.*tolerance 0\.001"
    with (
        exported_wrong("segment_0.onnx", lambda m: m.blocks["1"].fc2.bias),  # type: ignore
        pytest.raises(ParityError, match=wrong),
    ):
        export_bundle(quick_model, tmp_path / "out")


def test_a_failed_export_leaves_the_old_bundle(bundle_copy: Path, quick_model: LGViT) -> None:
    before = (bundle_copy / "manifest.json").read_bytes()
    with pytest.raises(ParityError):
        export_bundle(quick_model, bundle_copy, ExportOptions(tolerance=1e-12))
    assert (bundle_copy / "manifest.json").read_bytes() == before
    assert [p.name for p in bundle_copy.parent.iterdir()] == [bundle_copy.name]
    open_bundle(bundle_copy)


def test_a_new_export_replaces_the_old_bundle(bundle_copy: Path, quick_model: LGViT) -> None:
    export_bundle(quick_model, bundle_copy, ExportOptions(policy=Confidence(0.33)))
    assert open_bundle(bundle_copy).manifest.policy["threshold"] == 0.33
    assert [p.name for p in bundle_copy.parent.iterdir()] == [bundle_copy.name]


def test_a_directory_that_is_no_bundle_is_left_alone(tmp_path: Path, exported_model: LGViT) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ExportError, match="is not a bundle.* it is left alone"):
        export_bundle(exported_model, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_another_programs_manifest_is_left_alone(
    tmp_path: Path, exported_model: LGViT, bundle: Path
) -> None:
    for name, content in (("web", "{}"), ("mixed", (bundle / "manifest.json").read_text())):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(content)
        (tmp_path / name / "app.js").write_text("precious")
        with pytest.raises(ExportError, match="is left alone"):
            export_bundle(exported_model, tmp_path / name)
        assert (tmp_path / name / "app.js").read_text() == "precious"


def test_an_interrupted_swap_brings_the_old_bundle_back(
    bundle_copy: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial") and target == bundle_copy:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    monkeypatch.setattr("lgvit_edge.bundle.directory._exchange", lambda *_: False)
    with pytest.raises(KeyboardInterrupt):
        put_in_place(bundle_copy, bundle)
    open_bundle(bundle_copy)
    assert [p.name for p in bundle_copy.parent.iterdir()] == [bundle_copy.name]


def test_there_is_no_moment_without_a_bundle(bundle_copy: Path, bundle: Path) -> None:
    missing, done = [], threading.Event()

    def look() -> None:
        while not done.is_set():
            if not (bundle_copy / "manifest.json").exists():
                missing.append(time.monotonic())

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(20):
        put_in_place(bundle_copy, bundle)
    done.set()
    thread.join()
    assert not missing
    assert [p.name for p in bundle_copy.parent.iterdir()] == [bundle_copy.name]


def test_a_bundle_left_aside_by_a_killed_export_is_kept(
    bundle_copy: Path, quick_model: LGViT
) -> None:
    bundle_copy.rename(bundle_copy.with_name(f".{bundle_copy.name}.old"))
    with pytest.raises(ParityError):
        export_bundle(quick_model, bundle_copy, ExportOptions(tolerance=1e-12))
    open_bundle(bundle_copy)


def test_an_unwritable_place_is_an_error(tmp_path: Path, exported_model: LGViT) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot write"):
        export_bundle(exported_model, tmp_path / "file" / "out")


def test_leftovers_of_a_killed_export_are_cleared(tmp_path: Path, bundle: Path) -> None:
    (tmp_path / ".out.partial" / "segments").mkdir(parents=True)
    put_in_place(tmp_path / "out", bundle)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_export_leaves_what_another_one_is_writing(
    bundle_copy: Path, exported_model: LGViT, lock_elsewhere: Callable[[Path], Any]
) -> None:
    """Even where that one runs in another container, whose processes cannot be seen here."""
    theirs = bundle_copy.with_name(f".{bundle_copy.name}.partial")
    (theirs / "segments").mkdir(parents=True)
    with lock_elsewhere(bundle_copy.with_name(f".{bundle_copy.name}.lock")):
        with pytest.raises(ExportError, match="is being written by another process; wait for it"):
            export_bundle(exported_model, bundle_copy)
    assert (theirs / "segments").exists()


def test_what_came_while_the_export_ran_is_left_alone(
    bundle_copy: Path, exported_model: LGViT
) -> None:
    with pytest.raises(ExportError, match="is left alone"), writing(bundle_copy):
        (bundle_copy / "thesis.txt").write_text("years of work")
    assert (bundle_copy / "thesis.txt").exists()


def test_a_killed_tune_does_not_stand_in_the_way_of_the_next_export(
    bundle_copy: Path, quick_model: LGViT
) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from lgvit_edge.bundle.directory import add_to_manifest, open_bundle
bundle = Path(sys.argv[1])
Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
add_to_manifest(bundle, open_bundle(bundle).manifest.identity, {})
"""
    killed = subprocess.run([sys.executable, "-c", script, str(bundle_copy)])
    assert killed.returncode == -signal.SIGKILL
    left = {path.name for path in bundle_copy.iterdir() if path.name.startswith(".")}
    assert len(left) == 2 and ".lock" in left  # and the part of the manifest
    export_bundle(quick_model, bundle_copy, ExportOptions(policy=Confidence(0.33)))
    assert open_bundle(bundle_copy).manifest.policy["threshold"] == 0.33
    assert not [path.name for path in bundle_copy.iterdir() if path.name.startswith(".")]


def test_points_found_for_a_bundle_are_not_written_into_the_next_one(bundle_copy: Path) -> None:
    """They wait for their turn, and by then the bundle is another."""
    manifest = open_bundle(bundle_copy).manifest
    preprocess = dataclasses.replace(manifest.passes[0].preprocess, mean=(0.1, 0.2, 0.3))
    passes = (dataclasses.replace(manifest.passes[0], preprocess=preprocess),)
    other = dataclasses.replace(manifest, passes=passes)
    refused: list[BundleError] = []

    def add() -> None:
        try:
            add_to_manifest(bundle_copy, manifest.identity, {})
        except BundleError as error:
            refused.append(error)

    thread = threading.Thread(target=add)
    staging = bundle_copy.with_name("staging")
    shutil.copytree(bundle_copy, staging)
    (staging / "manifest.json").write_text(other.dumps())
    with locked(bundle_copy / ".lock"):  # as by the export that puts its bundle in place
        thread.start()
        bundle_copy.rename(bundle_copy.with_name("aside"))
        staging.rename(bundle_copy)
    thread.join()
    assert "was exported again meanwhile" in str(refused[0])
    assert open_bundle(bundle_copy).manifest == other


def test_the_exporter_reads_its_operators_once(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a second for each graph; fails where PyTorch has renamed what is private to it."""
    from onnxscript._internal import ast_utils

    read = ast_utils.get_src_and_ast
    sources: list[object] = []
    monkeypatch.setattr(ast_utils, "get_src_and_ast", lambda f: sources.append(f) or read(f))
    part = Part("linear.onnx", torch.nn.Linear(2, 2).eval(), torch.ones(1, 2), "x", ("y",))
    trace([part], opset=18, batch=(1, 1))
    assert len(sources) < 50  # of 500


@pytest.mark.parametrize("opset", [17, 18, 20])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_both_forms_of_gelu_are_exported_exactly(opset: int, approximate: str) -> None:
    module = torch.nn.GELU(approximate=approximate)
    x = torch.linspace(-4, 4, 81)[None]
    (graph,), _ = trace([Part("gelu.onnx", module, x, "x", ("y",))], opset=opset, batch=(1, 1))
    (found,) = ReferenceEvaluator(ir.serde.serialize_model(graph.whole)).run(None, {"x": x.numpy()})
    np.testing.assert_allclose(found, module(x).numpy(), atol=1e-6)


@pytest.mark.parametrize("family", ["vit", "swin", "swinv2"])
def test_opset_17_is_kept_whatever_the_exporter_leaves(family: str, tmp_path: Path) -> None:
    """Means and lengths, whose axes became inputs with 18; TensorRT 8.6 reads 17."""
    exits = (ExitConfig(1, "lph", 3), ExitConfig(2, "gah", 2), ExitConfig(3, "attention"))
    sizes = dict(num_blocks=4, exits=exits)
    config = vit(**sizes) if family == "vit" else swin(family=family, **sizes)
    parts = [
        Part(f"{s.index}", s.module, example_input(config, s.index), "x", ("hidden", "logits"))
        for s in cut(randomised(LGViT(config)))
    ]
    parts[-1] = dataclasses.replace(parts[-1], outputs=("logits",))
    traced, chain = trace(parts, opset=17, batch=(1, 1))
    assert all(graphs.head is not None for graphs in traced[:-1])
    kinds = set()
    for i, found in enumerate(
        [graph for graphs in (*traced, [chain]) for graph in graphs if graph]
    ):
        proto = ir.serde.serialize_model(found)
        assert [entry.version for entry in proto.opset_import if not entry.domain] == [17]
        onnx.save(proto, tmp_path / f"{i}.onnx")
        onnx.checker.check_model(tmp_path / f"{i}.onnx", full_check=True)
        kinds |= {node.op_type for node in proto.graph.node}
    assert "ReduceMean" in kinds and ("ReduceL2" in kinds) is (family == "swinv2")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    (answer,) = ReferenceEvaluator(proto).run(None, {"x": pixels})
    with torch.no_grad():
        expected = baseline(randomised(LGViT(config)))(torch.from_numpy(pixels)).numpy()
    assert difference(answer, expected) < 1e-5


def test_what_opset_17_does_not_have_is_named() -> None:
    part = Part("x.onnx", torch.nn.Mish(), torch.zeros(1, 2), "x", ("y",))
    with pytest.raises(ExportError, match="opset 17 has no Mish as this model needs it: use opset"):
        trace([part], opset=17, batch=(1, 1))


def test_a_part_that_cannot_be_traced_is_named() -> None:
    class Branching(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    modules = (torch.nn.Linear(2, 2), Branching(), torch.nn.Linear(2, 2))
    parts = [
        Part(f"segment_{i}.onnx", module.eval(), torch.ones(1, 2), "x", ("y",))
        for i, module in enumerate(modules)
    ]
    with pytest.raises(ExportError, match=r"cannot export segment_1\.onnx: .*data-dependent"):
        trace(parts, opset=18, batch=(1, 1))


def test_a_folder_made_between_the_renames_does_not_cost_the_bundle(
    bundle_copy: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older filelock makes the folder of the lock it waits for."""
    manifest = open_bundle(bundle_copy).manifest
    rename = Path.rename

    def rename_and_wait(self: Path, target: Path) -> Path:
        result = rename(self, target)
        if self == bundle_copy:
            bundle_copy.mkdir()
            (bundle_copy / ".lock").touch()
        return result

    monkeypatch.setattr(Path, "rename", rename_and_wait)
    monkeypatch.setattr("lgvit_edge.bundle.directory._exchange", lambda *_: False)
    with pytest.raises(ExportError, match="cannot write .*not empty"):
        put_in_place(bundle_copy, bundle)
    assert open_bundle(bundle_copy).manifest == manifest
    assert [path.name for path in bundle_copy.parent.iterdir()] == ["bundle"]


def test_ctrl_c_leaves_nothing(
    tmp_path: Path, quick_model: LGViT, interrupt: Callable[[list[str], str], str]
) -> None:
    save_checkpoint(quick_model, tmp_path / "model.pt")
    interrupt(["export", "--ckpt", "model.pt"], ".out.partial/segments/*.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], None]]:
    """Press it; whatever handler the test run came with is put back."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield lambda: os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_waits_for_a_safe_place_and_a_second_one_does_not(
    ctrl_c: Callable[[], None], capfd: pytest.CaptureFixture[str]
) -> None:
    with held_interrupts() as check:
        check()
        ctrl_c()
        assert "after this step; Ctrl-C again stops at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            check()
        with pytest.raises(KeyboardInterrupt):
            ctrl_c()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_applications_own_handler_of_ctrl_c_stays(ctrl_c: Callable[[], None]) -> None:
    pressed: list[int] = []
    signal.signal(signal.SIGINT, lambda *_: pressed.append(1))
    with held_interrupts() as check:
        ctrl_c()
        check()
    assert pressed == [1]


@pytest.mark.skipif(not os.path.exists("/dev/shm"), reason="needs a small file system")
def test_a_full_disk_is_an_error_and_leaves_nothing(
    tmp_path: Path,
    quick_model: LGViT,
    command: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file size limit makes the same writes fail that a full disk does."""
    save_checkpoint(quick_model, tmp_path / "model.pt")
    monkeypatch.chdir(tmp_path)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, old[1]))
    try:
        said = command("export", "--ckpt", "model.pt", status=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    wanted = (
        r"cannot write out: File too large: it needs more than [\d,]+ bytes, and [\d,]+ are free"
    )
    assert re.search(wanted, said), said
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_differences_are_absolute_or_relative() -> None:
    assert difference(np.array([[0.5, 101.0]]), np.array([[0.4, 100.0]])) == pytest.approx(0.1)
    assert difference(np.array([[np.nan]]), np.array([[0.0]])) == float("inf")
    hidden = np.array([[[0.0, 100.0], [0.0, 1.0]]])
    found = hidden + 0.01
    assert difference(found, hidden, by_token=True) == pytest.approx(0.01)  # the second token's
    assert difference(found[:, :1], hidden[:, :1], by_token=True) == pytest.approx(0.0001)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"target": "toaster"}, "target must be one of cpu, jetson, rtx"),
        ({"precision": "fp8"}, "precision must be one of fp32, fp16, int8"),
        ({"fp32_islands": ("softmax",)}, "everything is in fp32 already"),
        (
            {"precision": "fp16", "fp32_islands": ("gelu",)},
            "must be among layernorm, softmax: gelu",
        ),
        ({"fp32_accumulate": True}, "for --precision fp16 .* fp32 sums in float32 already"),
        ({"fp32_accumulate": True, "precision": "fp16"}, "on CPUs half precision is summed in fl"),
        ({"fp32_accumulate": True, "precision": "int8", "target": "rtx"}, "the quantizer's scales"),
        (
            {"fp32_accumulate": True, "target": "jetson", "jetpack": "6.0"},
            r"TensorRT 8\.6 of JetPack 6\.0 chooses types itself",
        ),
        ({"input": "float64"}, "input must be one of uint8, float32"),
        ({"batch": (2, 4, 8)}, "batch must be 1:OPT:MAX"),
        ({"batch": (1, 9, 8)}, "batch must be 1:OPT:MAX"),
        ({"opset": 11}, "opset must be 17..23"),
        *[({"tolerance": t}, "must be a positive number") for t in (math.nan, math.inf, -1.0, 0.0)],
    ],
)
def test_options_that_mean_nothing(options: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        ExportOptions(**options)  # type: ignore[arg-type]


def test_a_plain_model_is_one_segment_that_equals_its_baseline(
    tmp_path: Path, exported_model: LGViT
) -> None:
    manifest = export_bundle(exported_model.with_exits([]), tmp_path / "out")
    assert [segment.head for segment in manifest.segments] == ["final"]
    assert manifest.segments[0].spec.macs == manifest.baseline.macs
    with Session.open(tmp_path / "out", backend="onnxruntime") as session:
        frame = np.zeros((40, 40, 3), np.uint8)
        result = session.predict(frame)
        assert (result.exit, result.class_index) == (1, session.timed_baseline(frame)[0].argmax())


def test_a_model_that_overflows_is_refused(tmp_path: Path, exported_model: LGViT) -> None:
    model = copy.deepcopy(exported_model)
    torch.nn.init.constant_(next(model.backbone.parameters()), math.nan)
    with pytest.raises(ExportError, match="own logits are not finite numbers.*train it again"):
        export_bundle(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_policy_with_too_many_thresholds_is_refused(
    tmp_path: Path, exported_model: LGViT
) -> None:
    options = ExportOptions(policy=Confidence((0.1, 0.2)))
    with pytest.raises(UsageError, match="one threshold or 3"):
        export_bundle(exported_model, tmp_path / "out", options)


def test_parity_samples_are_what_pytorch_said(bundle: Path) -> None:
    with np.load(bundle / "parity.npz") as samples, Session.open(bundle) as session:
        found = session.exit_logits(list(samples["images_1"]))
        assert np.abs(found - samples["logits"]).max() < 1e-4
    recorded = json.loads((bundle / "manifest.json").read_text())["parity"]
    assert len(recorded["max_difference"]) == 4 and max(recorded["max_difference"]) < 1e-4


def test_the_device_decides_the_operator_set_in_python_too() -> None:
    def opset(**given: Any) -> int | None:
        return ExportOptions(target="jetson", **given).opset

    assert (opset(), opset(jetpack="6.0"), opset(precision="int8")) == (18, 17, 20)
    for given, message in (
        ({"jetpack": "4"}, "expected one of 5, 6.0"),
        ({"jetpack": "6.0", "opset": 18}, "run: lgvit-edge export ... --opset 17"),
        ({"jetpack": "6.0", "precision": "int8"}, "builds fp32, fp16, the bundle is int8"),
    ):
        with pytest.raises(UsageError, match=message):
            opset(**given)
    with pytest.raises(UsageError, match="--jetpack is for --target jetson"):
        ExportOptions(target="cpu", jetpack="6.0")


def test_what_is_exported_is_a_checkpoint_or_an_architecture(
    tmp_path: Path, exported_model: LGViT
) -> None:
    save_checkpoint(exported_model, tmp_path / "model.pt")
    path = tmp_path / "model.pt"
    (model,) = models_to_export([path])
    assert model.config == exported_model.config
    (model,) = models_to_export([path], exits=["1,3"], image_sizes=[64])
    fewer = model.config
    assert [exit.block for exit in fewer.exits] == [1, 3] and fewer.image_size == 64
    (model,) = models_to_export(archs=["vit-tiny"], exits=["4,8"], heads="mlp", image_sizes=[64])
    timed = model.config
    assert [exit.head for exit in timed.exits] == ["mlp", "mlp"] and timed.image_size == 64
    for given in ({}, {"archs": ["vit-tiny"], "checkpoints": [path]}):
        with pytest.raises(UsageError, match="expected --ckpt MODEL, or --arch NAME"):
            models_to_export(**given)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a checkpoint has its heads"):
        models_to_export([path], heads="mlp")
    with pytest.raises(UsageError, match="--use-ema is for --ckpt: an architecture has random wei"):
        models_to_export(archs=["vit-tiny"], use_ema=True)
