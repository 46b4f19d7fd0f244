"""What long commands leave in a log file, where there is no terminal to draw a bar in."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path

import pytest
from pytest import MonkeyPatch
from rich.console import Console

from lgvit_edge._support import terminal
from lgvit_edge._support.terminal import progress_bar
from lgvit_edge.cli.app import main

pytestmark = pytest.mark.slow


def logged(folder: Path, *arguments: str) -> list[str]:
    """Lines with a time of day that a command wrote to files in place of a terminal."""
    with (
        (folder / "out.log").open("w") as out,
        (folder / "error.log").open("w") as error,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
        MonkeyPatch.context() as patch,
        pytest.raises(SystemExit) as end,
    ):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["lgvit-edge", *arguments])
        main()
    assert not end.value.code
    text = (folder / "out.log").read_text() + (folder / "error.log").read_text()
    assert "\r" not in text and "\x1b" not in text
    return re.findall(r"^\d\d:\d\d:\d\d (.*)$", text, re.MULTILINE)


def test_a_log_has_every_epoch_and_every_segment(folder: Path) -> None:
    options = "--data data --val data --backbone start.pt --epochs 2,3 --batch-size 16 --workers 0"
    lines = logged(folder, "train", *options.split(), "--cache", "--lr", "1e-3")
    for stage, epochs in ((1, 2), (2, 3)):
        for epoch in range(1, epochs + 1):
            start = f"stage {stage} epoch {epoch}/{epochs}: loss "
            assert any(line.startswith(start) for line in lines), (start, lines)
    assert "frozen blocks (64/64)" in lines and "measuring accuracy (0/64)" in lines
    lines = logged(folder, "export", "--ckpt", "model.pt", "--out", "bundle")
    steps = ["tracing", "segment 0", "segment 1", "segment 2", "baseline", "manifest"]
    assert lines == [f"exporting {step} ({done}/6)" for done, step in enumerate(steps)]
    lines = logged(folder, "bench", "--engines", "bundle", "--data", "data")
    assert lines[0] == "measuring (0/64)"


def test_a_log_gets_new_subjects_at_once_and_figures_each_minute(
    monkeypatch: MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO())
    with progress_bar("stage 1", to=console) as progress:
        for step in range(10):
            progress(step, 10, f"epoch {step // 5}: loss {step}")
            now[0] += 15
    assert isinstance(console.file, io.StringIO)
    said = [line[9:] for line in console.file.getvalue().splitlines()]
    assert said == [f"stage 1 epoch {s // 5}: loss {s} ({s}/10)" for s in (0, 4, 5, 9)]


def test_a_terminal_gets_a_bar_and_no_lines() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with progress_bar("exporting", to=console) as progress:
        progress(1, 4, "segment 1")
    assert isinstance(console.file, io.StringIO)
    drawn = console.file.getvalue()
    assert "━" in drawn and "segment 1" in drawn and "1/4" in drawn
    assert not re.search(r"^\d\d:\d\d:\d\d ", drawn, re.MULTILINE)
