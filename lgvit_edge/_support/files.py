"""Files read with a bound, and locks that end with their process; ``outputs`` writes them.

A lock tells whether a file is still being written. A list of processes does not: a process number
means nothing in another container or on another machine.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from lgvit_edge._support.text import tell

if TYPE_CHECKING:
    from filelock import FileLock

MAX_TEXT = 1 << 26  # bytes of a list or of JSON that people name; real ones are far shorter
# Opening a pipe without it waits for a writer, perhaps for ever; of a file it changes nothing.
_AT_ONCE = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)


@contextlib.contextmanager
def reading(path: str | os.PathLike[str], limit: int | None = None) -> Iterator[IO[bytes]]:
    """Open a file to read, of at most ``limit`` bytes; never a pipe or a device.

    Those may wait for ever, or never end.

    Raises:
        OSError: it cannot be opened, is no file, or is longer; ``strerror`` says so.
    """
    try:
        number = os.open(path, os.O_RDONLY | _AT_ONCE)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise _no_file(path) from None
        raise
    with contextlib.ExitStack() as opened:
        opened.callback(os.close, number)
        about = os.fstat(number)
        if stat.S_ISDIR(about.st_mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder, expected a file", path)
        if not stat.S_ISREG(about.st_mode):
            raise _no_file(path)
        if limit is not None and about.st_size > limit:
            raise _too_long(path, about.st_size, limit)
        yield opened.enter_context(open(number, "rb", closefd=False))


def read_bytes(path: str | os.PathLike[str], limit: int) -> bytes:
    """Return what is in a file of at most ``limit`` bytes; raises as ``reading`` does."""
    with reading(path, limit) as file:
        data = file.read(limit + 1)  # it may grow meanwhile; files of the kernel have no size
    if len(data) > limit:
        raise _too_long(path, len(data), limit)
    return data


def require_file(path: Path) -> None:
    """Refuse what exists and is no file, before a library opens it; raises as ``reading`` does."""
    with contextlib.suppress(FileNotFoundError), reading(path):
        pass


def _no_file(path: str | os.PathLike[str]) -> OSError:
    return OSError(
        errno.EINVAL,
        "it is a pipe or a device, expected a file; write what it gives to a file, and name that",
        path,
    )


def _too_long(path: str | os.PathLike[str], found: int, limit: int) -> OSError:
    return OSError(errno.EFBIG, f"expected at most {limit} bytes, found {found}", path)


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

    lock = lock_of(path)
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
                tell(f"waiting for {_holder(path)}, which {wait}")
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


def lock_of(path: Path) -> FileLock:
    """Return the lock that a file is, not yet held."""
    from filelock import FileLock

    # A soft lock, a file that merely exists, would outlive a killed process.
    return FileLock(path, fallback_to_soft=False)


def _holder(path: Path) -> str:
    try:
        return read_bytes(path, 1 << 10).decode("utf-8", "replace")[:200] or "another process"
    except OSError:
        return "another process"
