"""What ``lgvit-edge triton`` writes, parsed as Triton does and held against the bundle."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from repositories import engines_for
from signed import key_pair, own_copy, signed_copy
from small import point

from lgvit_edge._support.files import locked
from lgvit_edge.bundle.builds import graphs_of
from lgvit_edge.bundle.directory import add_to_manifest, open_bundle
from lgvit_edge.bundle.keys import read_trusted
from lgvit_edge.bundle.signing import sign_bundle
from lgvit_edge.errors import BundleError, LGViTEdgeError, MissingDependency, UsageError
from lgvit_edge.policies import Never
from lgvit_edge.serving.options import RunParameters
from lgvit_edge.serving.pbtxt import Word, dumps
from lgvit_edge.serving.repository import ServingOptions, write_repository

model_config = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="no tritonclient")
text_format = pytest.importorskip("google.protobuf.text_format")
KINDS = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32", "float16": "TYPE_FP16"}


def parsed(folder: Path) -> Any:
    """The configuration of a model as Triton reads it: no unknown field, no wrong type."""
    text = (folder / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config.ModelConfig())


def test_text_is_read_back_as_it_was(tmp_path: Path) -> None:
    odd = 'a "quoted" \\ back\nslash, häuser, \x00\u2028'
    message = {
        "name": odd,
        "max_batch_size": 3,
        "input": [{"name": "x", "dims": [-1, 3], "data_type": Word("TYPE_FP16"), "optional": True}],
        "dynamic_batching": {},
        "parameters": [{"key": "k", "value": {"string_value": "v"}}],
    }
    (tmp_path / "config.pbtxt").write_text(dumps(message), encoding="utf-8")
    found = parsed(tmp_path)
    assert (found.name, found.max_batch_size) == (odd, 3)
    (tensor,) = found.input
    assert (list(tensor.dims), tensor.optional) == ([-1, 3], True)
    assert tensor.data_type == model_config.TYPE_FP16
    assert found.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert found.parameters["k"].string_value == "v"


def test_a_session_is_a_model_that_needs_nothing_else(bundle: Path, tmp_path: Path) -> None:
    run = RunParameters(backend="onnxruntime", threads=2, policy="confidence:0.7")
    out = tmp_path / "deep" / "models"
    options = ServingOptions("front.door", run=run, instances=3, queue_delay_us=500)
    assert write_repository(bundle, out, options) == ["front.door"]
    assert [path.name for path in out.iterdir()] == ["front.door"]
    found = parsed(out / "front.door")
    assert (found.name, found.backend, found.max_batch_size) == ("front.door", "python", 4)
    assert found.dynamic_batching.max_queue_delay_microseconds == 500
    assert [(group.count, group.kind) for group in found.instance_group] == [
        (3, model_config.ModelInstanceGroup.KIND_CPU)
    ]
    assert {warm.batch_size for warm in found.model_warmup} == {1, 4}
    parameters = {key: value.string_value for key, value in found.parameters.items()}
    assert parameters == {"backend": "onnxruntime", "threads": "2", "policy": "confidence:0.7"}
    assert RunParameters.read(parameters) == run

    copied = open_bundle(out / "front.door" / "1" / "bundle")  # every hash is checked
    assert copied.manifest == open_bundle(bundle).manifest
    assert [file.name for file in tmp_path.iterdir()] == ["deep"]  # nothing else is left
    assert [file.name for file in out.parent.iterdir()] == ["models"]


def test_a_signature_holds_for_the_copy(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    pair = key_pair(tmp_path / "key")
    signed = signed_copy(bundle, tmp_path / "signed", pair)
    engines_for(open_bundle(signed))
    sign_bundle(signed, pair.key)
    (signed / "notes.txt").write_text("mine")
    write_repository(signed, tmp_path / "models", ServingOptions())
    copied = own_copy(tmp_path / "models" / "lgvit" / "1" / "bundle", tmp_path / "copy")
    open_bundle(copied, trusted_keys=read_trusted([pair.public]))


def test_engines_come_along_and_other_files_do_not(bundle_copy: Path, tmp_path: Path) -> None:
    engines_for(open_bundle(bundle_copy), "one")
    engines_for(open_bundle(bundle_copy), "two")
    (bundle_copy / "notes.txt").write_text("mine")
    options = ServingOptions(run=RunParameters(backend="tensorrt"))
    write_repository(bundle_copy, tmp_path / "models", options)
    copied = tmp_path / "models" / "lgvit" / "1" / "bundle"
    assert not (copied / "notes.txt").exists()
    for tag in ("one", "two"):
        for file in (bundle_copy / "engines" / tag).iterdir():
            assert (copied / "engines" / tag / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("name", ["bundle", "passes_bundle", "fixed"])
def test_segments_are_models_with_the_graphs_tensors(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    root = (
        request.getfixturevalue("rtx_bundle")(name)
        if name == "fixed"
        else request.getfixturevalue(name)
    )
    bundle = open_bundle(root)
    run = RunParameters(threads=3, device="cpu", policy="confidence:0.7")
    models = write_repository(root, tmp_path / "models", ServingOptions("m", "segments", run))
    assert models[0] == "m"
    front = parsed(tmp_path / "models" / "m")
    parameters = {key: value.string_value for key, value in front.parameters.items()}
    assert parameters == {"segments": "m", "policy": "confidence:0.7"}
    assert not front.model_warmup  # segments may be loaded after it
    beside = tmp_path / "models" / "m" / "1" / "bundle"
    assert [file.name for file in beside.iterdir()] == ["manifest.json"]

    graphs = graphs_of(bundle)
    del graphs["baseline"]  # every policy stops early
    assert models[1:] == [f"m_{key}" for key in graphs]
    most = bundle.manifest.batch[2]
    for model, (key, graph) in zip(models[1:], graphs.items(), strict=True):
        folder = tmp_path / "models" / model
        found = parsed(folder)
        assert (found.name, found.backend) == (model, "onnxruntime")
        assert found.max_batch_size == (0 if most == 1 else most)
        assert found.parameters["intra_op_thread_count"].string_value == "3"
        # What the file says itself, loaded from its own folder alone.
        loaded = onnx.load(folder / "1" / "model.onnx").graph
        assert {file.name for file in (folder / "1").iterdir()} <= {"model.onnx", "weights.bin"}
        for ours, theirs in (
            *zip(found.input, loaded.input, strict=True),
            *zip(found.output, loaded.output, strict=True),
        ):
            assert ours.name == theirs.name
            kind = onnx.helper.tensor_dtype_to_np_dtype(theirs.type.tensor_type.elem_type).name
            assert model_config.DataType.Name(ours.data_type) == KINDS[kind]
            shape = [size.dim_value for size in theirs.type.tensor_type.shape.dim]
            assert list(ours.dims) == (shape if most == 1 else shape[1:])
        (warm,) = {warm.name: warm for warm in found.model_warmup if warm.batch_size < 2}.values()
        assert list(warm.inputs) == [graph.inputs[0].name]
        assert list(warm.inputs[graph.inputs[0].name].dims) == list(found.input[0].dims), key


def test_a_policy_that_never_stops_wants_the_model_without_exits(
    bundle_copy: Path, tmp_path: Path
) -> None:
    manifest = open_bundle(bundle_copy).manifest
    add_to_manifest(bundle_copy, manifest.identity, {"whole": point(Never())})
    models = write_repository(bundle_copy, tmp_path / "models", ServingOptions(layout="segments"))
    assert models[-1] == "lgvit_baseline"


def test_segments_of_tensorrt_are_its_engines(bundle_copy: Path, tmp_path: Path) -> None:
    bundle = open_bundle(bundle_copy)
    engines_for(bundle)
    options = ServingOptions("t", "segments", RunParameters(backend="tensorrt", device="cuda:1"))
    models = write_repository(bundle_copy, tmp_path / "models", options)
    for model, key in zip(models[1:], graphs_of(bundle), strict=False):
        folder = tmp_path / "models" / model
        found = parsed(folder)
        assert (found.backend, found.default_model_filename) == ("tensorrt", "model.plan")
        engine = bundle_copy / "engines" / "card" / f"{key}.engine"
        assert (folder / "1" / "model.plan").read_bytes() == engine.read_bytes()
        (group,) = found.instance_group
        assert group.kind == model_config.ModelInstanceGroup.KIND_GPU and list(group.gpus) == [1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(name="../x"), "a model's name must be letters, digits"),
        (dict(name=".hidden"), "begin with a letter or digit"),
        (dict(name=""), "begin with a letter or digit"),
        (dict(name="x" * 65), "64 at most"),
        (dict(layout="ensemble"), "layout must be one of session, segments, found 'ensemble'"),
        (dict(instances=0), "instances must be a whole number of at least 1"),
        (dict(queue_delay_us=-1), "the queue delay must be 0 to 10000000 microseconds, found -1"),
        (dict(run=dict(threads=0)), "threads must be a whole number of at least 1"),
        (dict(run=dict(point="p", policy="never")), "a policy or an operating point, not both"),
        (dict(run=dict(point="none")), "no operating point 'none'"),
        (dict(run=dict(policy="confidence:7")), "threshold"),
        (dict(run=dict(backend="tflite")), "backend must be one of"),
        (dict(run=dict(backend="onnxruntime", precision="bf16")), "takes no precision"),
        (dict(run=dict(backend="onnxruntime", device="npu")), "device must be one of"),
        (dict(run=dict(backend="tensorrt")), "no TensorRT engines; run: lgvit-edge build"),
        (
            dict(layout="segments", run=dict(backend="tensorrt")),
            "has no engines of TensorRT; run: lgvit-edge build",
        ),
        (
            dict(layout="segments", run=dict(backend="openvino")),
            "onnxruntime and tensorrt, found 'openvino'",
        ),
        (dict(layout="segments", run=dict(precision="bf16")), "export with --precision"),
        (
            dict(layout="segments", run=dict(device="cuda:abc")),
            "run on cpu, cuda or cuda:N, found 'cuda:abc'",
        ),
    ],
)
def test_what_no_server_could_run_is_refused(
    options: dict[str, Any], says: str, bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(LGViTEdgeError, match=says):
        run = RunParameters(**options.pop("run", {}))
        write_repository(bundle, tmp_path / "models", ServingOptions(run=run, **options))
    assert not list(tmp_path.iterdir())


def test_a_number_that_somebody_wrote_into_the_configuration_is_checked() -> None:
    with pytest.raises(UsageError, match="threads in config.pbtxt must be a number, found 'two'"):
        RunParameters.read({"threads": "two"})


@pytest.mark.parametrize(
    ("builds", "says"),
    [
        ({"rtx": dict(library="tensorrt-rtx")}, "those of TensorRT-RTX are not for Triton"),
        ({"a": {}, "b": {}}, "engines of several builds: a, b"),
        ({"old": dict(weights_sha256=("0" * 64,))}, "compiled from other graphs"),
    ],
)
def test_engines_that_do_not_fit_are_refused(
    builds: dict[str, dict[str, Any]], says: str, bundle_copy: Path, tmp_path: Path
) -> None:
    for tag, changes in builds.items():
        engines_for(open_bundle(bundle_copy), tag, **changes)
    options = ServingOptions(layout="segments", run=RunParameters(backend="tensorrt"))
    with pytest.raises(BundleError, match=says):
        write_repository(bundle_copy, tmp_path / "models", options)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("layout", ["session", "segments"])
def test_damaged_engines_are_refused(layout: str, bundle_copy: Path, tmp_path: Path) -> None:
    engines_for(open_bundle(bundle_copy))
    (bundle_copy / "engines" / "card" / "segment_1.engine").write_bytes(b"another")
    options = ServingOptions(layout=layout, run=RunParameters(backend="tensorrt"))
    with pytest.raises(BundleError, match="is not the engine that was built"):
        write_repository(bundle_copy, tmp_path / "models", options)
    (bundle_copy / "engines" / "card" / "build.json").write_text("{")
    with pytest.raises(BundleError, match="build.json"):
        write_repository(bundle_copy, tmp_path / "models", options)
    assert not (tmp_path / "models").exists()


def test_without_its_graphs_a_bundle_is_incomplete(bundle_copy: Path, tmp_path: Path) -> None:
    engines_for(open_bundle(bundle_copy))
    (bundle_copy / "segments" / "segment_0.onnx").unlink()
    options = ServingOptions(layout="segments", run=RunParameters(backend="tensorrt"))
    with pytest.raises(BundleError, match="segment_0.onnx is missing; export it again"):
        write_repository(bundle_copy, tmp_path / "models", options)


def test_segments_of_onnx_runtime_need_onnx(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependency, match=r"pip install 'lgvit-edge\[export\]'"):
        write_repository(bundle, tmp_path / "models", ServingOptions(layout="segments"))


def test_nothing_that_is_there_is_overwritten(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "models"
    out.mkdir()
    write_repository(bundle, out, ServingOptions())  # an empty folder will do
    before = sorted(out.rglob("*"))
    with pytest.raises(UsageError, match="is not empty, and nothing in it is overwritten"):
        write_repository(bundle, out, ServingOptions("another"))
    assert sorted(out.rglob("*")) == before


def test_what_a_killed_process_left_is_replaced(bundle: Path, tmp_path: Path) -> None:
    left = tmp_path / ".models.partial"
    (left / "lgvit").mkdir(parents=True)
    with locked(tmp_path / ".models.lock"):
        with pytest.raises(UsageError, match=f"is being written by process {os.getpid()}"):
            write_repository(bundle, tmp_path / "models", ServingOptions())
    write_repository(bundle, tmp_path / "models", ServingOptions("mine"))
    assert [path.name for path in tmp_path.iterdir()] == ["models"]
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["mine"]


def test_the_command_says_what_it_wrote(
    bundle: Path, tmp_path: Path, command: Callable[..., str]
) -> None:
    out = tmp_path / "my models"
    said = command("triton", "--engines", bundle, "--out", out, "--threads", 2)
    assert f"next: tritonserver --model-repository='{out}'" in said
    assert parsed(out / "lgvit").parameters["threads"].string_value == "2"
    said = command("triton", "--engines", bundle, "--out", out, status=2)
    assert "my models is not empty, and nothing in it is overwritten" in said
    said = command("triton", "--engines", tmp_path / "none", "--out", tmp_path / "x", status=1)
    assert "is not a bundle: no such directory" in said
    said = command("triton", "--engines", bundle, "--out", tmp_path / "s", "--layout", "segments")
    assert "model lgvit, which calls lgvit_segment_0, lgvit_segment_1" in said
