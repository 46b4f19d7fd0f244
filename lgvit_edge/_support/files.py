"""Files that are written whole or not at all, and locks that go with the process that holds them.

Whether what lies there is still being written is asked of its lock, never of a list of processes:
a number of a process means nothing in another container or on another machine.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import platform
import re
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from filelock import FileLock

PARTIAL = ".partial"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; rename it over ``path`` when the body succeeds.

    The name is this call's own, whichever thread or machine writes the same file meanwhile. What
    killed processes left of the file goes as well.

    Raises:
        OSError: as writing does; nothing is left behind.
    """
    for left in path.parent.glob(leftovers(path.name)):
        _remove_unless_written(left)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{PARTIAL}")
    try:
        partial.touch(exist_ok=False)
        with contextlib.ExitStack() as stack:
            # Where the file system has no locks, no other call removes it either.
            with contextlib.suppress(OSError, NotImplementedError):
                stack.enter_context(_lock(partial))
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def leftovers(name: str) -> str:
    """Pattern of the files that ``replacing`` writes for ``name``."""
    return f".{glob.escape(name)}.*{PARTIAL}"


@contextlib.contextmanager
def locked(path: Path, *, wait: str | None = None) -> Iterator[None]:
    """Hold the lock file ``path``, alone among all threads, processes and machines that ask for it.

    It is free again when this process ends, however it does, and processes forked meanwhile
    (workers) do not hold it. Unlocked, the file is gone.

    Args:
        path: in a folder that is there.
        wait: what the holder is doing, to wait for it and say so; None: not to wait.

    Raises:
        BlockingIOError: it is held, and not waited for; the message says by whom.
        OSError: it cannot be made, or the file system has no locks.
    """
    from filelock import Timeout

    path.parent.stat()  # or the lock would make it
    lock = _lock(path)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if wait is None:
                raise BlockingIOError(_holder(path)) from None
            print(f"waiting for {_holder(path)}, which {wait}", file=sys.stderr, flush=True)
            lock.acquire()
    except NotImplementedError as error:
        raise OSError(f"the file system of {path.parent} has no locks") from error
    try:
        path.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        mine = path.stat()
        yield
    finally:
        with contextlib.suppress(OSError):
            # Not another's: the folder may have been replaced as a whole.
            if os.path.samestat(path.stat(), mine):
                path.unlink()
        lock.release()


def write_json(path: Path, record: Any) -> None:
    """Write ``record`` whole or not at all, each list of numbers on one line.

    Raises:
        OSError: as writing does.
    """
    text = json.dumps(record, indent=1)
    flat = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    with replacing(path) as partial:
        partial.write_text(flat + "\n", encoding="utf-8")


def _lock(path: Path) -> FileLock:
    from filelock import FileLock

    # The other kind of lock, a file that is there, outlives a killed process.
    return FileLock(path, fallback_to_soft=False)


def _holder(path: Path) -> str:
    """Who holds a lock file, as it says itself."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")[:200] or "another process"
    except OSError:
        return "another process"


def _remove_unless_written(partial: Path) -> None:
    from filelock import Timeout

    with contextlib.suppress(Timeout, OSError, NotImplementedError):
        lock = _lock(partial)
        with lock.acquire(timeout=0):
            partial.unlink(missing_ok=True)
