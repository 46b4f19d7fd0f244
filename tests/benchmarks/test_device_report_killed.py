"""A device report that is ended by a signal goes on, and nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
STEPS = ("machine", "parity", "bench", "profile", "soak")
# What ends a report, and in which step; the next one goes on there.
ENDS = (
    (signal.SIGTERM, "machine"),
    (signal.SIGINT, "bench"),
    (signal.SIGKILL, "profile"),
    (signal.SIGTERM, "soak"),
)


def start(folder: Path) -> subprocess.Popen[str]:
    line = "device-report --engines bundle --backend onnxruntime --soak-minutes 0.02"
    (folder / "tmp").mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "lgvit_edge", *line.split()],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder / "tmp"), "COLUMNS": "200"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def until(what: Callable[[], object], seconds: float = 120.0) -> None:
    due = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < due
        time.sleep(0.01)


def working_on(folder: Path) -> list[str]:
    """Processes whose present folder is that of the steps."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(place / "cwd") == str(folder / "report.zip.steps"):
                found.append((place / "cmdline").read_text())
        except OSError:  # it has ended, or is another user's
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="needs Linux's /proc")
def test_a_signal_ends_the_step_too_and_the_report_goes_on(
    bundle_copy: Path, tmp_path: Path
) -> None:
    bundle_copy.rename(tmp_path / "bundle")
    before = set(tmp_path.iterdir())
    done: tuple[str, ...] = ()
    for number, step in ENDS:
        process = start(tmp_path)
        log = tmp_path / "report.zip.steps" / f"{step}.txt"
        until(lambda log=log: log.exists() and working_on(tmp_path))  # type: ignore[misc]
        time.sleep(0.5)  # into the step's work
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == (130 if number == signal.SIGINT else -number), said
        assert (f"goes on after {', '.join(done)}, " in said) is bool(done), said
        until(lambda: not working_on(tmp_path), seconds=20)
        assert not (tmp_path / "report.zip").exists()
        done = STEPS[: STEPS.index(step)]
    last = start(tmp_path)
    said, _ = last.communicate(timeout=240)
    assert last.returncode == 0, said
    assert f"goes on after {', '.join(done)}, " in said, said
    with zipfile.ZipFile(tmp_path / "report.zip") as archive:
        assert archive.testzip() is None
        assert {"summary.md", *(f"{name}.json" for name in STEPS)} <= set(archive.namelist())
    left = set(tmp_path.iterdir()) - before
    assert left == {tmp_path / "report.zip", tmp_path / "tmp"}
    ours = {path.name for path in (tmp_path / "tmp").iterdir()} - {".ses"}  # ONNX Runtime's
    assert not ours
