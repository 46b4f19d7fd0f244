"""Python in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys


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
