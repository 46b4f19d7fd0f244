"""Outputs of every command: a place that cannot be written is told before any work."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pytest import MonkeyPatch
from small import write_photos

from lgvit_edge.bundle.directory import open_bundle, writing
from lgvit_edge.model import LGViT, save_checkpoint

Command = Callable[..., str]
TUNE = "tune --engines bundle --data photos"
TRAIN = "train --data photos --val photos --backbone start.pt"
# Where each command begins to work.
WORK = (
    "lgvit_edge.benchmarks.measure_layers",
    "lgvit_edge.export.source.models_to_export",
    "lgvit_edge.export.tensorrt.build._build_all",
    "lgvit_edge.runtime.Session.open",
    "lgvit_edge.serving.repository.open_bundle",
    "lgvit_edge.benchmarks.device.report.steps",
    "lgvit_edge.model.inspection.inspected",
    "lgvit_edge.training.start.class_names",
    "lgvit_edge.training.data.digits.digits_sets",
    "lgvit_edge.bundle.packed.pack",
    "lgvit_edge.bundle.packed.unpack",
)
FILES = (
    ("bench --engines bundle --json {}", "json"),
    ("bench --engines bundle --report {}", "html"),
    ("bench --engines bundle --engines bundle --data photos --plot {}", "png"),
    ("profile --engines bundle --json {}", "json"),
    ("profile --engines bundle --plot {}", "png"),
    (f"{TUNE} --json {{}}", "json"),
    (f"{TUNE} --plot {{}}", "png"),
    (f"{TUNE} --logits {{}}", "npy"),
    (f"{TRAIN} --out {{}}", "pt"),
    ("device-report --engines bundle --out {}", "zip"),
    ("bundle pack bundle --out {}", "tar"),
    ("predict --engines bundle --data photos --out {}", "jsonl"),
    ("predict --engines bundle --data photos --out {}", "parquet"),
)
REPLACED = (
    "export --ckpt start.pt --out {}",
    "demo --out {}",
    "bundle unpack photos.tar --out {}",
    "triton --engines bundle --out {}",
)
FOLDERS = (
    *REPLACED,
    f"{TRAIN} --cache-features {{}}",
    "probe start.pt --data photos --out {}",
)


@pytest.fixture
def here(
    tmp_path: Path,
    bundle_copy: Path,
    exported_model: LGViT,
    monkeypatch: MonkeyPatch,
    in_time: None,
) -> Path:
    """The working folder, with a bundle, a checkpoint and photos."""
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", "abcde", 1)
    save_checkpoint(exported_model, Path("start.pt"))
    return tmp_path


@pytest.fixture
def idle(here: Path, monkeypatch: MonkeyPatch) -> Iterator[None]:
    """No command may begin its work, nor leave anything."""
    Path("folder").mkdir()
    Path("file").write_text("old")
    for _, suffix in FILES:
        Path(f"folder.{suffix}").mkdir(exist_ok=True)
        if not Path(f"pipe.{suffix}").exists():
            os.mkfifo(f"pipe.{suffix}")
            Path(f"round.{suffix}").symlink_to(f"round.{suffix}")
    Path("round").symlink_to("round")

    def work(*_: Any, **__: Any) -> None:
        raise AssertionError("the work began")

    for name in WORK:
        monkeypatch.setattr(name, work)
    before = sorted(here.rglob("*"))
    yield
    assert sorted(here.rglob("*")) == before and Path("file").read_text() == "old"


@pytest.mark.parametrize(
    "line",
    [
        "export --ckpt start.pt --data photos --out {}",
        f"{TRAIN} --cache-features {{}}",
        "probe start.pt --data photos --out {}",
    ],
)
def test_a_folder_among_images_is_refused(
    line: str, here: Path, idle: None, command: Command
) -> None:
    """The next run would take it for a class."""
    said = command(*line.format("photos/new").split(), status=2)
    assert "photos/new lies in photos, where it would be read as a class" in said
    with pytest.raises(AssertionError, match="the work began"):
        command(*line.format("photos/.new").split())  # hidden folders are none


@pytest.mark.parametrize(
    ("place", "cure"),
    [
        ("none/x", "no such folder: {}/none; run: mkdir -p {}/none"),
        ("file/x", "expected a folder, found a file: {}/file; name a file elsewhere"),
        ("folder", "expected a file, found a folder: folder"),
        ("round", "is a link that leads round in a circle; remove it"),
        ("pipe", "(nobody reads from the pipe pipe.*: start its reader first|name a file)"),
        ("/sys/x", "cannot write to /sys: .*; name a file elsewhere"),
    ],
)
@pytest.mark.parametrize(("line", "suffix"), FILES)
def test_a_bad_place_for_a_file_is_told_before_any_work(
    line: str, suffix: str, place: str, cure: str, here: Path, idle: None, command: Command
) -> None:
    status = 1 if line.startswith("train") else 2
    said = command(*line.format(f"{place}.{suffix}").split(), status=status)
    assert re.search(cure.format(here, here), said), said
    assert status == 1 or f"error: {line.split()[-2]}: " in said


@pytest.mark.parametrize(
    ("place", "cure"),
    [
        ("file", "expected a folder, found a file: file"),
        ("file/x/y", "cannot write to {}/file: Not a directory; name a folder elsewhere"),
        ("round", "round is a link that leads round in a circle; remove it"),
        ("/sys/x", "cannot write to /sys: .*; name a folder elsewhere"),
    ],
)
@pytest.mark.parametrize("line", FOLDERS)
def test_a_bad_place_for_a_folder_is_told_before_any_work(
    line: str, place: str, cure: str, here: Path, idle: None, command: Command
) -> None:
    status = 1 if line.startswith("train") else 2
    said = command(*line.format(place).split(), status=status)
    assert re.search(cure.format(here), said), said


@pytest.mark.parametrize("line", REPLACED)
def test_a_mounted_folder_is_told_before_any_work(
    line: str, here: Path, idle: None, command: Command, monkeypatch: MonkeyPatch
) -> None:
    mounted = here / ("folder/bundle" if "demo" in line else "folder")
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == mounted)
    said = command(*line.format("folder").split(), status=2)
    assert "is mounted, so it cannot be replaced: name a folder inside it, such as fold" in said


@pytest.mark.parametrize(
    "line", [pytest.param("build {rtx}", marks=pytest.mark.trt), f"{TUNE} --json x.json"]
)
def test_a_bundle_that_cannot_be_changed_is_told_before_any_work(
    line: str,
    idle: None,
    rtx_bundle: Callable[[str], Path],
    command: Command,
    monkeypatch: MonkeyPatch,
) -> None:
    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    rtx = ""
    if line.startswith("build"):
        pytest.importorskip("tensorrt_rtx")
        rtx = str(rtx_bundle("fixed"))
    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    said = command(*line.format(rtx=rtx).split(), status=1)
    assert re.search("cannot write to .*: Read-only file system; .* cp -r .* COPY", said), said


def test_a_bundle_at_a_link_is_replaced_where_the_link_leads(here: Path, bundle: Path) -> None:
    shutil.copytree(bundle, "far")
    Path("far/.lock").touch()
    Path("link").symlink_to("far")
    with writing(Path("link")) as staging:
        shutil.copytree(bundle, staging, dirs_exist_ok=True)
    assert Path("link").is_symlink() and not Path("far").is_symlink()
    open_bundle(Path("far"))
    assert not Path("far/.lock").exists()  # it is the new one
    assert {p.name for p in here.iterdir()} == {"bundle", "photos", "start.pt", "far", "link"}


@pytest.mark.parametrize(
    "line",
    [
        "bench --engines bundle --rounds 1",
        "profile --engines bundle --runs 1",
        f"{TUNE} --logits x.npy",
    ],
)
def test_a_record_on_standard_output_is_all_there_is(
    line: str, here: Path, monkeypatch: MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from lgvit_edge.cli.app import main

    if line.startswith("tune"):
        write_photos(here / "many", "abcde", 12)
        line = line.replace("photos", "many") + " --trials 2"
    monkeypatch.setattr(sys, "argv", ["lgvit-edge", *line.split(), "--json", "/dev/stdout"])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capfd.readouterr()
    assert not end.value.code, err
    assert isinstance(json.loads(out), dict) and "record: /dev/stdout" in err


def test_a_record_goes_to_a_pipe_at_the_end(here: Path, command: Command) -> None:
    os.mkfifo("pipe")
    with ThreadPoolExecutor(1) as thread:
        said = thread.submit(subprocess.check_output, ["cat", "pipe"])
        opened = os.open("pipe", os.O_WRONLY)  # waits for the reader
        command("bench", "--engines", "bundle", "--rounds", "1", "--json", "pipe")
        os.close(opened)
        assert json.loads(said.result(10))["exits"]


@pytest.mark.parametrize("option", ["--json", "--report"])
def test_a_full_device_is_named(option: str, here: Path, command: Command) -> None:
    line = ("bench", "--engines", "bundle", "--rounds", "1", option, "/dev/full")
    assert "error: /dev/full: No space left on device" in command(*line, status=1)


@pytest.mark.parametrize("line", ["info bundle", "info bundle --json", "doctor", "--version"])
def test_a_full_standard_output_is_an_error(line: str, here: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lgvit_edge", *line.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr == "error: standard output: No space left on device\n"
