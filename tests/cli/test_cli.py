"""The command line: what a user sees, exit statuses, and no tracebacks."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import lgvit_edge as run
from small import write_photos

from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.model import LGViT, save_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, exported_model: LGViT) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "model.pt"
    save_checkpoint(exported_model, path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders a..e, the names the exported model knows."""
    return write_photos(tmp_path_factory.mktemp("photos"), "abcde", 2)


def test_help_names_every_policy() -> None:
    for name in ("bench", "predict"):
        text = run(name, "--help").stdout
        assert all(name in text for name in ("confidence:0.8", "patience:2", "never"))


def test_help_names_every_command() -> None:
    done = run("--help")
    assert done.returncode == 0
    names = "train info export build tune bench compare predict doctor device-report demo"
    for name in names.split():
        assert re.search(rf"\b{name}\b", done.stdout)


def test_version() -> None:
    assert run("--version").stdout.strip() == "lgvit-edge 0.1.0"


def test_export_info_bench_predict(
    quick_model: LGViT,
    photos: Path,
    tmp_path: Path,
    command: Callable[..., str],
) -> None:
    path, out = tmp_path / "model.pt", tmp_path / "out"
    save_checkpoint(quick_model, path)
    said = command("export", "--ckpt", path, "--target", "cpu", "--out", out)
    assert "verified against PyTorch: max |difference|" in said
    assert "x the weights" in said

    for known in (path, out):
        shown = json.loads(command("info", known, "--json"))
        assert [s["head"] for s in shown["segments"]] == ["lph", "final"]
        assert "lph" in command("info", known)

    record_file = tmp_path / "record.json"
    done = run("bench", "--engines", out, "--data", photos, "--json", record_file)
    assert done.returncode == 0, done.stderr
    record = json.loads(record_file.read_text())
    assert record["samples"] == 10 and record["accuracy"] is not None
    assert "bench --engines" in record["command"]
    assert "efficiency" in done.stdout

    done = run("predict", "--engines", out, photos / "a", photos / "b" / "00.png", "--json")
    rows = json.loads(done.stdout)
    assert [Path(row["image"]).name for row in rows] == ["00.png", "01.png", "00.png"]
    assert all(row["label"] in "abcde" and 0 < row["confidence"] <= 1 for row in rows)
    assert "confidence" in command("predict", "--engines", out, photos / "a")


def test_export_needs_weights_or_an_architecture(
    tmp_path: Path, command: Callable[..., str]
) -> None:
    said = command("export", "--arch", "vit-huge", "--out", tmp_path / "out", status=2)
    assert "unknown architecture 'vit-huge'" in said
    command("export", "--out", tmp_path / "out", status=2)


def test_labels_are_put_into_the_bundle(
    tmp_path: Path, quick_model: LGViT, command: Callable[..., str]
) -> None:
    save_checkpoint(quick_model, tmp_path / "model.pt")
    (tmp_path / "names.txt").write_text("v\nw\nx\ny\nz\n")
    arguments = ("export", "--ckpt", tmp_path / "model.pt", "--labels", tmp_path / "names.txt")
    command(*arguments, "--out", tmp_path / "out")
    assert open_bundle(tmp_path / "out").manifest.labels == tuple("vwxyz")
    (tmp_path / "names.txt").write_text("v\nw\n")
    said = command(*arguments, "--out", tmp_path / "out", status=1)
    assert "expected 5 class names, one per line and class, found 2" in said


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (("export", "--ckpt", "none.pt"), 1, "no such checkpoint: none.pt"),
        (("export", "--ckpt", "{junk}"), 1, "neither a file of torch.save nor"),
        (("export", "--ckpt", "{ckpt}", "--target", "toaster"), 2, "target must be one of"),
        (("export", "--ckpt", "{ckpt}", "--precision", "fp8"), 2, "precision must be one of"),
        (("export", "--ckpt", "{ckpt}", "--batch", "many"), 2, "--batch must be MIN:OPT:MAX"),
        (("export", "--ckpt", "{ckpt}", "--policy", "coin"), 2, "expected a policy such as"),
        (
            ("export", "--ckpt", "{ckpt}", "--out", "{junk}"),
            2,
            "--out: expected a folder, found a file",
        ),
        (("export", "--ckpt", "{ckpt}", "--precision", "int8"), 2, "add --calib DIR"),
        (("export", "--ckpt", "{ckpt}", "--data", "nowhere"), 1, "no such folder: nowhere"),
        (("build", "nowhere"), 1, "not a bundle"),
        (("build", "{ckpt}"), 1, "it is a file .*run: lgvit-edge export --ckpt .*model.pt --out"),
        (("build", "{out}"), 2, "was exported for CPUs"),
        (("bench", "--engines", "{out}", "--backend", "cuda"), 2, "backend must be one of"),
        (("bench", "--engines", "{out}", "--wait", "sleep"), 2, "wait must be one of hybrid"),
        (("bench", "--engines", "{out}", "--speculate"), 2, "takes no TensorRT options"),
        (
            ("bench", "--engines", "{out}", "--backend", "tensorrt", "--threads", "2"),
            2,
            "the tensorrt backend takes no threads; leave that out, or use backend 'onnxruntime'",
        ),
        (
            ("predict", "--engines", "{out}", "{junk}", "--precision", "fp16"),
            2,
            "the onnxruntime backend takes no precision; .*use backend 'openvino'",
        ),
        (("bench", "--engines", "nowhere"), 1, "not a bundle.*run: lgvit-edge export"),
        (("bench", "--engines", "{out}", "--data", "nowhere"), 1, "no such folder: nowhere"),
        (("bench", "--engines", "{out}", "--data", "{empty}"), 1, "holds no images"),
        (("bench", "--engines", "{out}", "--data", "{others}"), 1, "labels do not match"),
        (("bench", "--engines", "{out}", "--mix", "1,2"), 2, "expected 4 shares"),
        (("bench", "--engines", "{out}", "--samples", "3"), 2, "need --data"),
        (("bench", "--engines", "{out}", "--rounds", "1", "--json", "no/x"), 2, "no such folder"),
        (("predict", "--engines", "{out}", "{junk}"), 1, "not an image"),
        (("predict", "--engines", "{out}", "{empty}"), 1, "holds no images"),
        (("predict", "--engines", "{out}", "x.png", "--policy", "fixed:9"), 2, "an exit in 1..4"),
        (("info", "nowhere"), 1, "no such checkpoint or bundle"),
        (("info", "{empty}"), 1, "is neither a bundle nor a checkpoint: expected manifest.json"),
        (("frobnicate",), 2, "No such command"),
    ],
)
def test_bad_input_is_one_clear_error(
    arguments: tuple[str, ...],
    status: int,
    text: str,
    checkpoint: Path,
    bundle: Path,
    photos: Path,
    tmp_path: Path,
    command: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    junk = tmp_path / "junk.pt"
    junk.write_bytes(b"hello" * 100)
    others = tmp_path / "others"
    shutil.copytree(photos / "a", others / "zebra")
    names = {"ckpt": checkpoint, "out": bundle, "junk": junk, "others": others}
    names["empty"] = tmp_path / "empty"
    before = sorted(tmp_path.rglob("*"))
    said = command(*(argument.format(**names) for argument in arguments), status=status)
    assert re.search(text, said), said
    assert sorted(tmp_path.rglob("*")) == before


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lgvit_edge", "info", "nowhere", "--debug"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_doctor_says_what_can_run_here() -> None:
    found = json.loads(run("doctor", "--json").stdout)
    assert {"onnxruntime", "torch"} <= {p["name"] for p in found["packages"]}
    assert {b["name"]: b["runs"] for b in found["backends"]}["onnxruntime on cpu"]
    assert "onnxruntime on cpu" in run("doctor").stdout


def test_a_missing_extra_is_named_with_its_command(bundle: Path, tmp_path: Path) -> None:
    for name in ("onnxruntime", "torch"):
        (tmp_path / f"{name}.py").write_text("raise ModuleNotFoundError('no such package')")
    import os

    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = run("bench", "--engines", bundle, PYTHONPATH=path)
    assert done.returncode == 1 and "run: pip install 'lgvit-edge[cpu]'" in done.stderr
    done = run("export", "--ckpt", "model.pt", PYTHONPATH=path)
    assert done.returncode == 1 and "run: pip install 'lgvit-edge[export]'" in done.stderr
    for arguments in (("--help",), ("train", "--help")):
        assert run(*arguments, PYTHONPATH=path).returncode == 0


def test_a_command_is_added_from_outside(tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text(
        "from typing import Annotated\n\nimport typer\n\n"
        "from lgvit_edge.cli.app import app, main\n"
        "from lgvit_edge.errors import DataError\n\n\n"
        "@app.command()\n"
        "def count(images: Annotated[int, typer.Option(help='How many.')] = 0) -> None:\n"
        "    'Count images.'\n"
        "    if not images:\n"
        "        raise DataError('expected images, found none')\n"
        "    print(images)\n\n\n"
        "main()\n"
    )

    def toy(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "toy.py", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    assert "Count images." in toy("--help").stdout and "bench" in toy("--help").stdout
    assert toy("count", "--images", "3").stdout == "3\n"
    refused = toy("count")
    assert (refused.returncode, refused.stderr) == (1, "error: expected images, found none\n")
