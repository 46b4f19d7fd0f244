"""Writing files so that a crash leaves the old one or none."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; rename it over ``path`` when the body succeeds.

    What a killed process left of the same file goes as well.

    Raises:
        OSError: as writing does; nothing is left behind.
    """
    for left in leftovers(path, "partial"):
        left.unlink(missing_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def leftovers(path: Path, kind: str) -> list[Path]:
    """What processes that are no more left beside ``path``, as ``.NAME.PID.KIND``."""
    if not Path("/proc").exists():  # no telling which processes are
        return []
    found = []
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.{kind}"):
        pid = left.name.split(".")[-2]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            found.append(left)
    return found


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Make ``folder`` and keep other processes out; the lock goes with the process.

    Raises:
        BlockingIOError: another process holds it, unless it is waited for.
        OSError: as writing does.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        # Not flock, which processes forked meanwhile (workers) would go on holding.
        fcntl.lockf(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(handle)


def write_json(path: Path, record: Any) -> None:
    """Write ``record`` whole or not at all, each list of numbers on one line.

    Raises:
        OSError: as writing does.
    """
    text = json.dumps(record, indent=1)
    flat = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    with replacing(path) as partial:
        partial.write_text(flat + "\n", encoding="utf-8")
