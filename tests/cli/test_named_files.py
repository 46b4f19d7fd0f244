"""What people name where a file is expected: pipes, devices, folders; and names that mislead."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import lgvit_edge as run
from small import write_photos

from lgvit_edge.bundle.layout import MANIFEST
from lgvit_edge.model import LGViT, save_checkpoint

Command = Callable[..., str]
TITLE, CLEAR, TURNED = "\x1b]0;owned\x07", "\x9b2J", "\u202egnp.tac"
CURE = "it is a pipe or a device, expected a file; write what it gives to a file, and name that"


@pytest.fixture
def surroundings(tmp_path: Path, bundle: Path, exported_model: LGViT, in_time: None) -> Path:
    """A pipe that nobody writes to, and folders in which the file that counts is such a pipe."""
    for name, file in (("model", "config.json"), ("bundle", MANIFEST)):
        (tmp_path / name).mkdir()
        os.mkfifo(tmp_path / name / file)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "out").symlink_to(bundle)
    photos = write_photos(tmp_path / "photos", "abcde", 2)
    (tmp_path / "flat").mkdir()
    shutil.copy(photos / "a" / "00.png", tmp_path / "flat")
    save_checkpoint(exported_model, tmp_path / "model.pt")
    return tmp_path


@pytest.mark.parametrize("named", ["pipe", "/dev/zero"])
@pytest.mark.parametrize(
    "line",
    [
        "compare NAMED NAMED",
        "predict --engines out NAMED",
        "bench --engines out --data photos --classes NAMED",
        "bench --engines out --data flat --labels NAMED",
        "export --ckpt model.pt --labels NAMED --out new",
        "export --ckpt NAMED --out new",
    ],
)
def test_what_is_no_file_is_refused_at_once(
    line: str,
    named: str,
    surroundings: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Command,
) -> None:
    monkeypatch.chdir(surroundings)
    said = command(*line.replace("NAMED", named).split(), status=1)
    assert ("no such checkpoint" if "--ckpt NAMED" in line else CURE) in said
    assert not (surroundings / "new").exists()


@pytest.mark.parametrize(
    "line",
    ["predict --engines bundle photos", "compare bundle bundle", "export --ckpt model --out new"],
)
def test_a_pipe_inside_a_folder_is_refused_at_once(
    line: str, surroundings: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    monkeypatch.chdir(surroundings)
    assert CURE in command(*line.split(), status=1)


def test_names_do_not_steer_the_terminal(
    exported_model: LGViT, tmp_path: Path, command: Command
) -> None:
    for module in ("jinja2", "matplotlib"):
        pytest.importorskip(module)
    names = (TITLE, CLEAR, TURNED, "\u2066d", "plain")
    config = exported_model.config.replace(labels=names)
    model = LGViT(config).eval()
    model.load_state_dict(exported_model.state_dict())
    save_checkpoint(model, tmp_path / "model.pt")
    photos = write_photos(tmp_path / f"photos{TURNED}", names, 2)
    (photos / names[0] / f"broken{CLEAR}.png").touch()
    out, page = tmp_path / f"out{TITLE}", tmp_path / f"page{TURNED}.html"
    said = [
        command("export", "--ckpt", tmp_path / "model.pt", "--out", out),
        command("info", out),
        command("predict", "--engines", out, photos, status=1),
        command("bench", "--engines", out, "--data", photos, "--policy", "never", "--report", page),
        command("compare", out, out, status=1),
        command("info", tmp_path / CLEAR, status=1),
        command("predict", "--engines", out, status=2),
        command("info", tmp_path, f"{TITLE}", status=2),
        command("info", f"--{TITLE}", tmp_path, status=2),
        command(f"{TITLE}", status=2),
        page.read_text(encoding="utf-8"),
    ]
    for text in said:
        assert not set(text) & set("\x07\x1b\x9b\u202e\u2066"), text
    assert "\\u202egnp.tac" in said[2] and "\\u202egnp.tac" in said[-1]


def test_every_terminal_takes_what_is_said(tmp_path: Path) -> None:
    (tmp_path / "caf\xe9 \u65e5").mkdir()
    for line in (("--help",), ("info", "caf\xe9 \u65e5")):
        done = run(*line, cwd=tmp_path, PYTHONIOENCODING="ascii:strict")
        assert done.returncode == (line[0] == "info"), done.stderr
    assert "caf\\xe9 \\u65e5 is neither a bundle" in done.stderr
