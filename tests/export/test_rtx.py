"""Real engines by the real TensorRT-RTX builder, which needs no GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import runpy
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from processes import lgvit_edge as run

from lgvit_edge.architecture.config import ExitConfig
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.cli.build import parse_capabilities
from lgvit_edge.errors import BackendError, BuildError, BundleError, UsageError
from lgvit_edge.export import BuilderOptions, ExportOptions, build_engines, export_bundle
from lgvit_edge.export.tensorrt.build import check_graphs
from lgvit_edge.export.tensorrt.builder import BuildTask, EngineBuilder
from lgvit_edge.images.labelled import unlabelled_images
from lgvit_edge.machine.gpu import find_gpu
from lgvit_edge.machine.tensorrt import TensorRT
from lgvit_edge.model import LGViT, save_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.trt,
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None,
        reason="tensorrt-rtx is not installed",
    ),
]
Command = Callable[..., str]
NAMES = ("segment_0", "segment_1", "segment_2", "segment_3", "baseline")


def tiny(**changes: object) -> LGViT:
    """The model of the other tests, changed."""
    conftest = runpy.run_path(str(Path(__file__).parents[1] / "conftest.py"))
    config = conftest["make_tiny_config"]().replace(**changes)
    return conftest["random_model"](config)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def rtx(tmp_path_factory: pytest.TempPathFactory, rtx_bundle: Callable[[str], Path]) -> Path:
    """A half-precision bundle with engines; do not change it, take ``rtx_copy``."""
    out = Path(shutil.copytree(rtx_bundle("fixed"), tmp_path_factory.mktemp("rtx") / "out"))
    build_engines(out)
    return out


@pytest.fixture
def rtx_copy(tmp_path: Path, rtx: Path) -> Path:
    return Path(shutil.copytree(rtx, tmp_path / "out"))


def check_engines(bundle: Path) -> None:
    """Compile a bundle; every engine is as its record says, and the parser warns of nothing."""
    built = build_engines(bundle)
    names = [f"segment_{i}" for i in range(len(open_bundle(bundle).manifest.segments))]
    assert built.compiled == (*names, "baseline")
    assert built.build.warnings == ()
    for engine in built.build.engines.values():
        assert (built.folder / engine.file).stat().st_size == engine.bytes > 1000
    assert check_graphs(bundle) == built.build.version


def test_every_kind_of_graph_compiles(rtx_bundle: Callable[[str], Path], tmp_path: Path) -> None:
    check_engines(Path(shutil.copytree(rtx_bundle("two"), tmp_path / "out")))


@pytest.mark.parametrize(
    ("family", "precision", "batch", "input", "accumulate"),
    [
        ("vit", "int8", (1, 1, 1), "uint8", False),
        ("deit", "fp16", (1, 2, 4), "float32", True),
    ],
)
def test_every_precision_and_input_compiles(
    family: str,
    precision: str,
    batch: tuple[int, int, int],
    input: str,
    accumulate: bool,
    tmp_path: Path,
) -> None:
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    options = ExportOptions(
        target="rtx",
        precision=precision,
        fp32_accumulate=accumulate,
        batch=batch,
        input=input,
        tolerance=10.0,
    )
    model = tiny(family=family, num_blocks=2, exits=(ExitConfig(1, "gah", 2),))
    images = unlabelled_images(tmp_path) if precision == "int8" else []
    export_bundle(model, tmp_path / "out", options, calibration=images)
    check_engines(tmp_path / "out")


def test_the_record_is_complete(rtx: Path) -> None:
    (record,) = (rtx / "engines").glob("*/build.json")
    found = json.loads(record.read_text())
    assert found["library"] == "tensorrt-rtx" and found["precision"] == "fp16"
    assert record.parent.name == f"rtx-{found['version']}-fp16"
    assert tuple(found["engines"]) == NAMES
    for name, engine in found["engines"].items():
        plan = (record.parent / engine["file"]).read_bytes()
        assert plan.startswith(b"vtrt") and len(plan) == engine["bytes"]  # nothing before the plan
        assert set(engine) == {"file", "sha256", "onnx_sha256", "bytes", "seconds"}, name
    assert not (record.parent / "timing.cache").exists()


def test_a_second_build_does_nothing_and_says_so(rtx_copy: Path) -> None:
    done = run("build", rtx_copy)
    assert done.returncode == 0 and "all 5 engines are current; nothing to do" in done.stdout
    (engine,) = (rtx_copy / "engines").glob("*/segment_1.engine")
    os.truncate(engine, 100)
    found = json.loads(run("build", rtx_copy, "--json").stdout)
    assert found["compiled"] == ["segment_1"] and engine.stat().st_size > 100


def test_info_shows_the_engines(rtx_copy: Path) -> None:
    (folder,) = (rtx_copy / "engines").iterdir()
    shown = run("info", rtx_copy).stdout
    assert f"engines/{folder.name}: 5 engines, " in shown and "run: lgvit-edge build" not in shown
    (found,) = json.loads(run("info", rtx_copy, "--json").stdout)["engines"]
    assert (found["tag"], found["count"], found["fault"]) == (folder.name, 5, None)
    record = json.loads((folder / "build.json").read_text())
    del record["engines"]["baseline"]
    (folder / "build.json").write_text(json.dumps(record))
    shown = run("info", rtx_copy).stdout
    assert "incomplete, baseline is missing; run: lgvit-edge build" in shown
    (folder / "build.json").write_text("{")
    assert "build.json is not JSON" in run("info", rtx_copy).stdout


def test_info_sees_damaged_engines(rtx_copy: Path) -> None:
    (engine,) = (rtx_copy / "engines").glob("*/segment_1.engine")
    os.truncate(engine, 100)
    shown = run("info", rtx_copy).stdout
    assert "segment_1.engine is not the engine that was built" in shown
    assert shown.count("run: lgvit-edge build") == 1


def test_chosen_compute_capabilities(rtx_copy: Path) -> None:
    options = BuilderOptions(compute_capabilities=("8.6", "8.9"))
    built = build_engines(rtx_copy, options=options)
    assert built.compiled == NAMES and built.folder.name.startswith("rtx-sm86-sm89-")
    with pytest.raises(UsageError, match=r"compiles for compute capabilities 7.5, .*found '8.7'"):
        build_engines(rtx_copy, options=BuilderOptions(compute_capabilities=("8.7",)))


def test_export_for_rtx_compiles(tmp_path: Path, quick_model: LGViT) -> None:
    save_checkpoint(quick_model, tmp_path / "model.pt")
    done = run("export", "--ckpt", "model.pt", "--target", "rtx", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 engines compiled" in done.stdout
    if find_gpu() is None:
        assert "not run: there is no NVIDIA GPU here" in done.stdout
    assert len(list((tmp_path / "out" / "engines").glob("*/*.engine"))) == 3
    # An export over it takes the engines of the old bundle along.
    export_bundle(quick_model, tmp_path / "out", ExportOptions(target="rtx"))
    assert not (tmp_path / "out" / "engines").exists()


def test_export_for_jetson_is_checked_and_says_what_to_run(
    tmp_path: Path, quick_model: LGViT, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_checkpoint(quick_model, tmp_path / "model.pt")
    jetson = ("export", "--ckpt", "model.pt", "--target", "jetson", "--jetpack", "6.0")
    said = command(*jetson)
    assert "opset 17, fp16" in said  # what TensorRT 8.6 reads
    assert "every graph parses with TensorRT-RTX" in said
    assert "only a build there is proof" in said
    assert " lgvit-edge build out" in said
    assert not (tmp_path / "out" / "engines").exists()
    refused = command("build", "out", status=1)
    assert "this machine is none; copy out there and run: lgvit-edge build out" in refused


def test_jetpacks_decide_the_opset(tmp_path: Path, quick_model: LGViT, command: Command) -> None:
    save_checkpoint(quick_model, tmp_path / "model.pt")
    jetson = ("export", "--ckpt", tmp_path / "model.pt", "--target", "jetson")
    for options, text in (
        (("--jetpack", "6.0", "--precision", "int8"), "builds fp32, fp16, the bundle is int8"),
        (("--jetpack", "5"), "8.5 on JetPack 5"),
        (("--jetpack", "4"), "--jetpack: expected one of 5, 6.0"),
        (("--jetpack", "6.0", "--opset", "18"), "run: lgvit-edge export ... --opset 17"),
    ):
        assert text in command(*jetson, *options, status=2)


@pytest.mark.parametrize("library", [None, "tensorrt-rtx"])
def test_a_bundle_for_cpus_has_no_engines(library: str | None, bundle: Path) -> None:
    with pytest.raises(UsageError, match="for CPUs.*export it again with --target rtx"):
        build_engines(bundle, library=library)


def test_what_the_parser_refuses_is_said(bundle: Path) -> None:
    """A graph for CPUs moves bytes before it casts them."""
    opened = open_bundle(bundle)
    with pytest.raises(BuildError, match=r"its parser refuses the graph: [\s\S]*UInt8"):
        EngineBuilder(TensorRT("tensorrt-rtx"), BuilderOptions()).check(
            BuildTask(
                bundle / "segments" / "segment_0.onnx",
                opened.manifest.segments[0].spec,
                dtype="float32",
                quantized=False,
                batch=opened.manifest.batch,
            )
        )


def test_a_wrong_capability_is_refused_before_anything_is_replaced(
    rtx_copy: Path, tmp_path: Path, quick_model: LGViT, command: Command
) -> None:
    save_checkpoint(quick_model, tmp_path / "model.pt")
    trt = TensorRT("tensorrt-rtx")
    for wrong in ("sm86", "8.6.1", "8.6,", "8.6,8.6"):
        with pytest.raises(UsageError, match="compiles for compute capabilities"):
            EngineBuilder(trt, BuilderOptions(compute_capabilities=parse_capabilities(wrong)))
    for wrong in ("sm86", ""):
        said = command(
            *("export", "--ckpt", tmp_path / "model.pt", "--target", "rtx"),
            *("--out", rtx_copy, f"--capability={wrong}"),
            status=2,
        )
        assert "compiles for compute capabilities" in said
    assert len(list((rtx_copy / "engines").glob("*/*.engine"))) == 5


def test_the_device_is_looked_at_before_the_export(
    tmp_path: Path, quick_model: LGViT, command: Command
) -> None:
    if find_gpu() is not None:
        pytest.skip("there is a GPU here")
    save_checkpoint(quick_model, tmp_path / "model.pt")
    line = ("export", "--ckpt", tmp_path / "model.pt", "--target", "rtx", "--out", tmp_path / "out")
    for device, status, text in (
        ("cpu", 2, "device must be one of cuda, cuda:N, found 'cpu'"),
        ("cuda:1", 1, "cuda:1 was asked for, found no NVIDIA GPU and driver; leave the device out"),
    ):
        assert text in command(*line, "--device", device, status=status)
        assert not (tmp_path / "out").exists()
    said = command(*line, "--device", "cuda")  # none is needed to compile
    assert "engines compiled in" in said and "--device cuda --backend tensorrt" in said


def test_options_of_another_target_are_refused(command: Command) -> None:
    for options, text in (
        (("--target", "cpu", "--capability", "8.6"), "--capability is for --target rtx"),
        (("--target", "cpu", "--device", "cuda"), "--device is for --target rtx"),
        (("--target", "rtx", "--no-engines", "--device", "cuda"), "--device is for --target rtx"),
        (("--target", "rtx", "--jetpack", "6"), "--jetpack is for --target jetson"),
    ):
        assert text in command("export", "--ckpt", "model.pt", *options, status=2)


def test_nothing_is_written_where_nothing_is_to_do(rtx_copy: Path) -> None:
    """A finished bundle may lie on a disk that cannot be written."""
    (folder,) = (rtx_copy / "engines").iterdir()
    assert build_engines(rtx_copy).compiled == ()
    assert not (folder / ".lock").exists()


def test_too_little_workspace_names_the_option(rtx_copy: Path) -> None:
    with pytest.raises(BuildError, match=r"cannot compile.*--workspace-mb"):
        build_engines(rtx_copy, options=BuilderOptions(workspace=1), force=True)


def test_damaged_graphs_are_refused(rtx_copy: Path) -> None:
    os.truncate(rtx_copy / "segments" / "segment_1.onnx", 50)
    with pytest.raises(BundleError, match="segment_1.onnx is not the file that was exported"):
        build_engines(rtx_copy)


def test_engines_do_not_run_without_a_gpu(rtx: Path) -> None:
    if find_gpu() is not None:
        pytest.skip("there is a GPU here")
    from lgvit_edge.runtime import Session

    with pytest.raises(BackendError, match="need an NVIDIA GPU.*the onnxruntime backend"):
        Session.open(rtx, backend="tensorrt")
    assert Session.open(rtx).describe()["backend"] == "onnxruntime"
    done = run("bench", "--engines", rtx, "--backend", "tensorrt")
    assert done.returncode == 1 and "lgvit-edge doctor" in done.stderr


def test_two_builds_at_once(rtx_copy: Path, lock_elsewhere: Callable[[Path], Any]) -> None:
    """The first has not finished an engine yet; the second must leave its folder alone."""
    (folder,) = (rtx_copy / "engines").iterdir()
    for path in folder.iterdir():
        path.unlink()
    with lock_elsewhere(folder / ".lock"):
        with pytest.raises(BuildError, match=r"another build \(.*\) is writing .*wait for it"):
            build_engines(rtx_copy)
    assert (folder / ".lock").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(rtx_copy: Path) -> None:
    shutil.rmtree(rtx_copy / "engines")
    rtx_copy.chmod(0o500)
    with pytest.raises(BundleError, match="cannot write to .*Permission denied; .*cp -r"):
        build_engines(rtx_copy)
    rtx_copy.chmod(0o700)


def test_a_full_disk_leaves_what_was_whole(rtx_copy: Path) -> None:
    """A file size limit makes the same writes fail that a full disk does."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    (folder,) = (rtx_copy / "engines").iterdir()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, old[1]))
    try:
        with pytest.raises(BuildError, match="cannot write .*engines"):
            build_engines(rtx_copy, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert after == before


def test_ctrl_c_stops_the_compiler_and_leaves_no_part(
    tmp_path: Path, interrupt: Callable[[list[str], str], str]
) -> None:
    options = ExportOptions(target="rtx", precision="fp32", tolerance=10.0)
    exits = (ExitConfig(1, "lph", 3), ExitConfig(3, "gah", 2))
    model = tiny(hidden_size=512, intermediate_size=2048, exits=exits)
    export_bundle(model, tmp_path / "out", options)
    interrupt(["build", "out"], "out/engines/*/.partial/build.json")
    (record,) = tmp_path.glob("out/engines/*/.partial/build.json")
    assert not list(record.parent.glob("*.partial"))
    whole = set(json.loads(record.read_text())["engines"])
    assert whole <= {path.stem for path in record.parent.glob("*.engine")} < set(NAMES)
    again = run("build", "out", cwd=tmp_path)  # goes on where it stopped
    assert again.returncode == 0 and "4 engines compiled in" in again.stdout
    assert not record.exists()
