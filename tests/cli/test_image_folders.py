"""Commands on folders of images: classes, what is left out, odd names, and the cures they name."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import lgvit_edge as run
from small import write_photos
from typer.main import get_command

from lgvit_edge._support.terminal import plain
from lgvit_edge.cli.app import app, main
from lgvit_edge.model import LGViT, save_checkpoint

Command = Callable[..., str]
ODD = (":dog: [x", "[red]a", "[/b]", "\x1b[2Jé", "back\\")


@pytest.fixture
def renamed(tmp_path: Path) -> Path:
    """The photos of classes a..e, in folders n5..n1, and ``order.txt``, which says so."""
    photos = write_photos(tmp_path / "photos", "abcde", 2)
    for name, other in zip("abcde", ("n5", "n4", "n3", "n2", "n1"), strict=True):
        (photos / name).rename(photos / other)
    (tmp_path / "order.txt").write_text("n5\nn4\nn3\nn2\nn1\n")
    return photos


def test_the_order_of_classes_can_be_given(
    bundle: Path, renamed: Path, tmp_path: Path, command: Command
) -> None:
    accuracies = []
    for data, more in (
        (write_photos(tmp_path / "same", "abcde", 2), ()),
        (renamed, ("--classes", tmp_path / "order.txt")),
    ):
        arguments = ("--engines", bundle, "--data", data, "--json", tmp_path / "record.json")
        command("bench", *arguments, "--policy", "never", *more)
        record = json.loads((tmp_path / "record.json").read_text())
        accuracies.append((record["accuracy"], record["baseline_accuracy"]))
    assert accuracies[0] == accuracies[1]


def options_in(said: str) -> set[str]:
    return set(re.findall(r"--[a-z][a-z-]+", said))


@pytest.mark.parametrize(
    ("arguments", "status", "named"),
    [
        (("bench", "--engines", "{out}", "--data", "{photos}"), 1, {"--classes"}),
        (("export", "--ckpt", "{ckpt}", "--data", "{photos}"), 1, {"--classes"}),
        (("tune", "--engines", "{out}", "--data", "{photos}"), 1, {"--classes"}),
        (
            ("train", "--backbone", "{ckpt}", "--data", "{photos}", "--order", "frozen"),
            1,
            {"--classes", "--order"},
        ),
        (("tune", "--engines", "{out}", "--data", "{flat}"), 1, {"--labels"}),
        (
            ("tune", "--engines", "{out}", "--logits", "x.npy", "--report-data", "{flat}"),
            1,
            {"--report-labels"},
        ),
        (("bench", "--engines", "{out}", "--classes", "sorted"), 2, {"--classes", "--data"}),
        (("export", "--ckpt", "{ckpt}", "--classes", "sorted"), 2, {"--classes", "--data"}),
        (
            ("tune", "--engines", "{out}", "--data", "{flat}", "--labels", "x", "--classes", "y"),
            2,
            {"--classes"},
        ),
        (
            ("bench", "--engines", "{out}", "--data", "{flat}", "--labels", "x", "--classes", "y"),
            2,
            {"--classes"},
        ),
        (("bench", "--engines", "{out}", "--data", "{photos}", "--classes", "gone"), 1, set()),
    ],
)
def test_errors_name_options_that_the_command_has(
    arguments: tuple[str, ...],
    status: int,
    named: set[str],
    bundle: Path,
    renamed: Path,
    tmp_path: Path,
    exported_model: LGViT,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if arguments[0] == "tune":
        pytest.importorskip("optuna", reason="optuna is not installed")
    monkeypatch.chdir(tmp_path)
    save_checkpoint(exported_model, tmp_path / "model.pt")
    names = {"out": bundle, "ckpt": "model.pt", "photos": renamed, "flat": renamed / "n1"}
    said = command(*(argument.format(**names) for argument in arguments), status=status)
    message = said[said.index("error: ") :]
    parameters: list[Any] = get_command(app).commands[arguments[0]].params  # type: ignore[attr-defined]
    assert named <= options_in(message) <= {option for p in parameters for option in p.opts}
    assert not message.endswith(("...", ",", ":", "("))


def test_what_is_left_out_and_what_cannot_be_read(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos = write_photos(tmp_path / "photos", "ab", 1)
    (photos / "a" / "IMG_1.HEIC").touch()
    (photos / "a" / "._00.png").touch()
    (photos / "b" / "in").mkdir()
    shutil.move(photos / "b" / "00.png", photos / "b" / "in" / "00.PNG")
    (photos / "b" / "broken.png").write_bytes(b"broken")

    def ended(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lgvit-edge", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    status, out, err = ended("predict", "--engines", bundle, photos, "--json")
    assert status == 1
    names = [Path(row["image"]).relative_to(photos).as_posix() for row in json.loads(out)]
    assert names == ["a/00.png", "b/in/00.PNG"]
    assert "of a kind that is read are left out: 1 (.heic: 1)" in err
    assert "error: 1 of 3 images cannot be read: " in err and "broken.png is not an image" in err
    record = tmp_path / "record.json"
    never = ("--engines", bundle, "--data", photos, "--policy", "never", "--json", record)
    status, out, err = ended("bench", *never)
    assert status == 0 and "(.heic: 1)" in err
    assert any("(.heic: 1)" in text for text in json.loads(record.read_text())["notes"])
    assert "images that cannot be read were skipped: 1, such as" in out and "broken.png" in out


def test_export_leaves_out_images_that_cannot_be_read(
    tmp_path: Path, quick_model: LGViT, command: Command
) -> None:
    photos = write_photos(tmp_path / "photos", "abcde", 1)
    (photos / "a" / "broken.png").write_bytes(b"broken")
    save_checkpoint(quick_model, tmp_path / "model.pt")
    arguments = ("--ckpt", tmp_path / "model.pt", "--out", tmp_path / "out", "--data", photos)
    said = command("export", *arguments)
    assert "note: 1 of 6 images cannot be read, such as: " in said
    assert "broken.png is not an image" in said and "compared on 5 images" in said


def test_odd_names_are_shown_as_they_are(
    tmp_path: Path, quick_model: LGViT, command: Command
) -> None:
    """Names that look like markup, like an emoji, or that steer the terminal."""
    photos = write_photos(tmp_path / ":cat: [y", ODD[:1], 1)
    save_checkpoint(quick_model, tmp_path / "model.pt")
    (tmp_path / "names.txt").write_text("\n".join(ODD), encoding="utf-8")
    out = tmp_path / ":fox: [z"
    arguments = ("--ckpt", tmp_path / "model.pt", "--labels", tmp_path / "names.txt")
    assert ":fox: [z" in command("export", *arguments, "--out", out)
    said = command("predict", "--engines", out, photos)
    assert any(plain(name).plain in said for name in ODD)
    said = command("bench", "--engines", out, "--data", photos, "--policy", "never")
    record = tmp_path / ":owl: [w.json"
    command("bench", "--engines", out, "--data", photos, "--policy", "never", "--json", record)
    assert ":owl: [w" in command("compare", record, record)
    assert ":fox: [z" in command("info", out)
    (photos / ":dog: [x").rename(photos / "[bold]wolf:dog:")
    said = command("bench", "--engines", out, "--data", photos, status=1)
    assert "such as '[bold]wolf:dog:'" in said and ":dog: [x, [red]a, [/b], ..." in said
    # A terminal of an encoding that lacks some of them
    file = next(photos.glob("*/*.png"))
    done = run("predict", "--engines", out, file, PYTHONIOENCODING="ascii", NO_COLOR="1")
    assert done.returncode == 0, done.stderr


def test_paths_that_are_not_utf_8(bundle: Path, tmp_path: Path, command: Command) -> None:
    for module in ("jinja2", "matplotlib"):
        pytest.importorskip(module)
    try:
        photos = write_photos(tmp_path / os.fsdecode(b"caf\xe9"), "ab", 1)
    except OSError:
        pytest.skip("this file system takes no such name")
    (photos / "a" / "broken.png").touch()
    files = ("--json", tmp_path / "record.json", "--report", tmp_path / "report.html")
    given = ("--engines", bundle, "--data", photos, "--policy", "never", *files)
    shown = "caf\\udce9/a/broken.png"
    assert f"were skipped: 1, such as {tmp_path}/{shown}" in command("bench", *given)
    assert json.loads((tmp_path / "record.json").read_text())["skipped"][0].endswith("broken.png")
    assert "caf\\udce9" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("caf\udce9 \x85", "caf\\udce9 \\x85"),
        ("[bold]:dog:\\", "[bold]:dog:\\"),
        ("日本語\u3000👨\u200d👩", "日本語\u3000👨\u200d👩"),
    ],
)
def test_text_is_shown_as_it_is(text: str, shown: str) -> None:
    assert plain(text).plain == shown
