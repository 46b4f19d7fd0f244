"""Files that are written whole or not at all, and locks that end with the process holding them.

A lock tells whether a file is still being written. A list of processes does not: a process number
means nothing in another container or on another machine.
"""

from __future__ import annotations

import contextlib
import glob
import os
import platform
import re
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lgvit_edge._support.finite_json import dumps

if TYPE_CHECKING:
    from filelock import FileLock

PARTIAL = ".partial"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; rename it over ``path`` when the body succeeds.

    Every call has a name of its own, so that several threads or machines may write the same file.
    Partial files that killed processes left are removed.

    Raises:
        OSError: as writing does; nothing is left behind.
    """
    for left in path.parent.glob(leftovers(path.name)):
        _remove_unless_written(left)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{PARTIAL}")
    try:
        partial.touch(exist_ok=False)
        with contextlib.ExitStack() as stack:
            # Without locks in the file system, no other call removes the partial file either.
            with contextlib.suppress(OSError, NotImplementedError):
                stack.enter_context(_lock(partial))
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def leftovers(name: str) -> str:
    """Return the pattern of the partial files that ``replacing`` writes for ``name``."""
    return f".{glob.escape(name)}.*{PARTIAL}"


@contextlib.contextmanager
def locked(path: Path, *, wait: str | None = None) -> Iterator[None]:
    """Hold the lock file ``path`` exclusively among all threads, processes and machines.

    The lock ends with this process, however it ends, and forked workers do not hold it. Unlocking
    removes the file. ``wait`` is what the holder is doing, for the message while waiting; None: do
    not wait.

    Raises:
        BlockingIOError: another holds the lock and ``wait`` is None; the message names the holder.
        OSError: the file cannot be made, or the file system has no locks.
    """
    from filelock import Timeout

    lock = _lock(path)
    told = False
    try:
        while True:
            path.parent.stat()  # raises: the lock would create a missing folder
            try:
                lock.acquire(timeout=0)
                break
            except Timeout:
                if wait is None:
                    raise BlockingIOError(_holder(path)) from None
            if not told:
                print(f"waiting for {_holder(path)}, which {wait}", file=sys.stderr, flush=True)
                told = True
            time.sleep(0.05)
    except NotImplementedError as error:
        raise OSError(f"the file system of {path.parent} has no locks") from error
    mine = path.stat()
    try:
        path.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            # The folder may have been replaced as a whole: another's lock file stays.
            if os.path.samestat(path.stat(), mine):
                path.unlink()
        lock.release()


def write_json(path: Path, record: Any) -> None:
    """Write ``record`` as JSON, whole or not at all, with each list of numbers on one line.

    A number that is not finite becomes ``null``.

    Raises:
        OSError: as writing does.
    """
    text = dumps(record)
    flat = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    with replacing(path) as partial:
        partial.write_text(flat + "\n", encoding="utf-8")


def _lock(path: Path) -> FileLock:
    from filelock import FileLock

    # A soft lock, a file that merely exists, would outlive a killed process.
    return FileLock(path, fallback_to_soft=False)


def _holder(path: Path) -> str:
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
