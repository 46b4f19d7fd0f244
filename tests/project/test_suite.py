"""This suite itself: a test that dies or hangs ends the run, which fails and names it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = Path(__file__).resolve().parents[2] / "pyproject.toml"
DIES = "import os, signal\n\ndef test_bad():\n    os.kill(os.getpid(), signal.SIGKILL)\n"
# In a lock, like native code, nothing that Python raises gets through.
HANGS = """
import threading

def test_bad():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()
"""


def run(folder: Path, bad: str, *options: str) -> tuple[int, str]:
    """Eight files, of which the first is bad, with the project's options; what pytest said."""
    (folder / "test_0.py").write_text(bad)
    for i in range(1, 8):
        (folder / f"test_{i}.py").write_text("def test_good():\n    pass\n")
    command = [sys.executable, "-m", "pytest", "-c", str(CONFIG), "--rootdir", str(folder)]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", *options, str(folder)],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,  # far more than it takes: a run that hangs fails here
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("bad", [DIES, HANGS], ids=["dies", "hangs"])
def test_a_worker_that_is_lost_ends_the_run(tmp_path: Path, bad: str) -> None:
    status, said = run(
        tmp_path, bad, "-n", "2", "--dist", "loadfile", "-o", "faulthandler_timeout=5"
    )
    assert status == 1, said
    assert "crashed while running 'test_0.py::test_bad'" in said, said
    # Once; or twice where xdist has given the file to the other worker before it gives up.
    assert said.count("node down") in (1, 2), said
    assert "INTERNALERROR" not in said
    assert ("in test_bad" in said) == (bad == HANGS)  # where it hung


def test_a_test_that_hangs_without_workers_ends_the_run(tmp_path: Path) -> None:
    status, said = run(tmp_path, HANGS, "-n", "0", "-o", "faulthandler_timeout=5")
    assert status == 1, said
    assert 'test_0.py", line 7 in test_bad' in said


def test_time_runs_out(pytestconfig: pytest.Config) -> None:
    """Later than any wait inside a test, whose message says more."""
    assert 600 < float(pytestconfig.getini("faulthandler_timeout")) < 3600
