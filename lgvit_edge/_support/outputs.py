"""Outputs: files written whole or not at all, pipes and devices written through, places checked.

A link that is named as an output stays: what it leads to is replaced. ``/dev/stdout``, a pipe and a
device such as ``/dev/null`` get the whole output at once, at its end.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
import shutil
import stat
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Any

from lgvit_edge._support.files import lock_of
from lgvit_edge._support.finite_json import dumps

PARTIAL = ".partial"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NEXT_LINE = re.compile(r"\n +")
_AT_ONCE = os.O_WRONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
# Pipes that were opened when they were checked: a reader that a writer left would end.
_opened: dict[Path, int] = {}


@contextlib.contextmanager
def replacing(path: Path, *, needed: int | None = None) -> Iterator[Path]:
    """Yield a path to write to, and rename it to the output ``path`` when the body succeeds.

    Every call has a name of its own, so that several threads or machines may write the same file.
    Partial files that killed processes left are removed. ``needed`` is the number of bytes that
    will be written, for the message of a full disk.

    Raises:
        OSError: as writing does; ``filename`` is ``path``, and nothing is left behind. Also of what
            is no place for an output, as ``check_file`` says.
    """
    if is_stream(path):
        with tempfile.TemporaryDirectory() as folder:
            whole = Path(folder) / "whole"
            yield whole
            with named(path):
                _pour(whole, path)
        return
    target = followed(path)
    for left in target.parent.glob(leftovers(target.name)):
        _remove_unless_written(left)
    partial = _partial(target)
    try:
        with named(path, partial, needed=needed):
            partial.touch(exist_ok=False)
            with contextlib.ExitStack() as stack:
                # Without locks in the file system, no other call removes the partial file either.
                with contextlib.suppress(OSError, NotImplementedError):
                    stack.enter_context(lock_of(partial))
                yield partial
                with partial.open("rb+") as file:
                    os.fsync(file.fileno())
                partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def leftovers(name: str) -> str:
    """Return the pattern of the partial files that ``replacing`` writes for ``name``."""
    return f".{glob.escape(name)}.*{PARTIAL}"


def write(path: Path, content: bytes | str) -> None:
    """Write a file, whole or not at all, text as UTF-8; raises as ``replacing`` does.

    What is not UTF-8 in the names of files is escaped.
    """
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with replacing(path, needed=len(data)) as partial:
        partial.write_bytes(data)


def write_json(path: Path, record: Any) -> None:
    """Write ``record`` as JSON, whole or not at all, with each list of numbers on one line.

    A number that is not finite becomes ``null``.

    Raises:
        OSError: as writing does.
    """

    def on_one_line(found: re.Match[str]) -> str:
        return f"[{_NEXT_LINE.sub(' ', found[1])}]"

    # Strings hold no line break of their own, JSON escapes it: what they say stays as it is.
    write(path, re.sub(r"\[\n +([^\[\]{}]*?)\n *\]", on_one_line, dumps(record)) + "\n")


def check_file(path: Path, *, streams: bool = True) -> None:
    """Check before long work that ``replacing`` will be able to write an output.

    A named pipe stays open from here until it is written. Without ``streams``, pipes and devices
    are refused too, as for what is read again.

    Raises:
        OSError: the folder is missing or cannot be written, or ``path`` is a folder, a mount point,
            a pipe that nobody reads, a socket, a disk, or a link in a circle; ``strerror`` says so.
    """
    if is_stream(path):
        if not streams:
            text = f"expected a file, found a pipe or a device: {path}; name a file"
            raise _refused(errno.EINVAL, text, path)
        if (number := _open_stream(path)) not in _opened.values():
            os.close(number)
        return
    target = followed(path)
    if not target.parent.is_dir():
        if target.parent.exists():
            text = f"expected a folder, found a file: {target.parent}; name a file elsewhere"
            raise _refused(errno.ENOTDIR, text, path)
        text = f"no such folder: {target.parent}; run: mkdir -p {quote(str(target.parent))}"
        raise _refused(errno.ENOENT, text, path)
    if target.is_dir():
        raise _refused(errno.EISDIR, f"expected a file, found a folder: {path}", path)
    if is_mounted(target):
        text = f"{path} is mounted, so it cannot be replaced: mount its folder, or name another"
        raise _refused(errno.EBUSY, text, path)
    try:
        with contextlib.suppress(FileNotFoundError):
            _partial(target).lstat()  # raises: a name that is too long
        # Without a name where the file system can: a killed check leaves nothing.
        tempfile.TemporaryFile(dir=target.parent).close()
    except OSError as error:
        text = f"cannot write to {target.parent}: {error.strerror}; name a file elsewhere"
        raise _refused(error.errno, text, path) from None


def check_folder(path: Path, *, replaced: bool = False) -> None:
    """Check before long work that a folder can be made, or written; leaves nothing behind.

    ``replaced`` tells whether the folder as a whole will be replaced by another one.

    Raises:
        OSError: it is no folder, cannot be written, or is mounted and so cannot be replaced.
    """
    target = followed(path)
    if target.exists() and not target.is_dir():
        raise _refused(errno.ENOTDIR, f"expected a folder, found a file: {path}", path)
    if replaced and is_mounted(target):
        text = f"{path} is mounted, so it cannot be replaced: name a folder inside it, such as "
        raise _refused(errno.EBUSY, text + quote(str(path / "out")), path)
    place = target.parent if replaced or not target.exists() else target
    while not place.exists():
        place = place.parent
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        text = f"cannot write to {place}: {error.strerror}; name a folder elsewhere"
        raise _refused(error.errno, text, path) from None


def followed(path: Path) -> Path:
    """Return where a link leads to, as an absolute path; the path itself where it is none.

    Raises:
        OSError: the links go round in a circle.
    """
    try:
        os.stat(path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            text = f"{path} is a link that leads round in a circle; remove it"
            raise _refused(errno.ELOOP, text, path) from None
    return Path(os.path.realpath(path))


def is_mounted(path: Path) -> bool:
    """Return whether something is mounted at an absolute path: it cannot be renamed."""
    if os.path.ismount(path):
        return True
    try:  # a part of the same file system, as containers mount files and folders
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    escaped = re.sub(r"[ \t\n\\]", lambda found: f"\\{ord(found[0]):03o}", str(path))
    return any(line.split(" ")[4:5] == [escaped] for line in lines.splitlines())


def is_stdout(path: Path) -> bool:
    """Return whether ``path`` names this process's standard output, as ``/dev/stdout`` does."""
    return _descriptor(path) == 1


@contextlib.contextmanager
def named(path: Path, partial: Path | None = None, *, needed: int | None = None) -> Iterator[None]:
    """Let errors of writing ``partial`` name the output ``path``; of a full disk, say what is free.

    PyTorch reports a failed write as a ``RuntimeError`` whose context is the ``OSError``.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        of = cause.filename
        if of is not None and not (partial and str(of).startswith(str(partial))):
            raise  # of another file
        text = cause.strerror or str(cause)
        if cause.errno in FULL and partial is not None:
            with contextlib.suppress(OSError):
                written = _size(partial)
                shutil.rmtree(partial, ignore_errors=True)
                partial.unlink(missing_ok=True)
                wanted = f"more than {written:,}" if needed is None else f"{needed:,}"
                free = shutil.disk_usage(partial.parent).free
                text += f": it needs {wanted} bytes, and {free:,} are free; name a place elsewhere"
                text += " (or raise ulimit -f)" if cause.errno == errno.EFBIG else ""
        raise _refused(cause.errno or errno.EIO, text, path) from None


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _refused(number: int | None, text: str, path: Path) -> OSError:
    return OSError(number or errno.EIO, text, str(path))


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}{PARTIAL}")


def _descriptor(path: Path) -> int | None:
    """Return the number of this process's open file that a path names, as ``/dev/fd/3`` does."""
    place = os.path.abspath(path)
    for _ in range(40):
        folder, name = os.path.split(place)
        folder = os.path.realpath(folder)
        if folder in (f"/proc/{os.getpid()}/fd", "/dev/fd") and name.isdecimal():
            return int(name)
        try:
            place = os.path.join(folder, os.readlink(os.path.join(folder, name)))
        except OSError:  # no link
            return None
    return None


def is_stream(path: Path) -> bool:
    """Return whether an output is written through: a pipe, a device, an open file.

    Raises:
        OSError: it is a socket or a disk, or an open file that is none.
    """
    number = _descriptor(path)
    try:
        mode = os.stat(path).st_mode if number is None else os.fstat(number).st_mode
    except OSError as error:
        if number is not None:
            text = f"{path} is not open here: name a file, or open it: {number}> FILE"
            raise _refused(error.errno, text, path) from None
        return False
    if stat.S_ISBLK(mode) or (stat.S_ISSOCK(mode) and number is None):
        kind = "a disk" if stat.S_ISBLK(mode) else "a socket"
        raise _refused(errno.EINVAL, f"expected a file, found {kind}: {path}", path)
    return number is not None or stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def _open_stream(path: Path) -> int:
    """Return an open file of a stream, which the caller closes; pipes stay open until used."""
    if (number := _descriptor(path)) is not None:
        return os.dup(number)
    key = Path(os.path.realpath(path))
    if key in _opened:
        return _opened[key]
    try:
        opened = os.open(path, _AT_ONCE)
    except OSError as error:
        text = f"cannot write to {path}: {error.strerror}; name a file elsewhere"
        if error.errno == errno.ENXIO:
            text = f"nobody reads from the pipe {path}: start its reader first"
        raise _refused(error.errno, text, path) from None
    os.set_blocking(opened, True)
    if stat.S_ISFIFO(os.fstat(opened).st_mode):
        _opened[key] = opened
    return opened


def _pour(whole: Path, path: Path) -> None:
    if is_stdout(path):
        sys.stdout.flush()
    number = _open_stream(path)
    _opened.pop(Path(os.path.realpath(path)), None)
    with whole.open("rb") as source, open(number, "wb") as sink:
        shutil.copyfileobj(source, sink)


def _remove_unless_written(partial: Path) -> None:
    from filelock import Timeout

    with contextlib.suppress(Timeout, OSError, NotImplementedError):
        lock = lock_of(partial)
        with lock.acquire(timeout=0):
            partial.unlink(missing_ok=True)
