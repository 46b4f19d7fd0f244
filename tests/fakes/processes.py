"""Programs in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def python(code: str, *arguments: object, fails: bool = False, **variables: str) -> str:
    """Run code to its end and return what it printed, or where it ``fails`` as meant, its error."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else done.stdout


def run(
    *command: str, cwd: Path, path: Path | None = None, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command with exactly ``path`` as PYTHONPATH."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        command, cwd=cwd, env=environment, input=stdin, capture_output=True, text=True
    )


def lgvit_edge(
    *arguments: object,
    cwd: Path | None = None,
    before: Callable[[], None] | None = None,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """Run a command of the project to its end; it may fail, but with no more than a message."""
    done = subprocess.run(
        [sys.executable, "-m", "lgvit_edge", *map(str, arguments)],
        cwd=cwd,
        preexec_fn=before,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "COLUMNS": "120", **variables},
    )
    assert "Traceback" not in done.stderr and "internal error" not in done.stderr, done.stderr
    return done


# Of ``lgvit-edge train``: on the ``data`` and ``start.pt`` of the fixture ``folder``.
TRAIN = "train --data data --val data --backbone start.pt --lr 1e-3"


def training(folder: Path, options: str, *launcher: str, **variables: str) -> subprocess.Popen[str]:
    """``lgvit-edge train`` in ``folder``; says all in one."""
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "lgvit_edge", *TRAIN.split(), *options.split()],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
