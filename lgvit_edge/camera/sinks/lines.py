"""Appends whole lines to a file that is valid at any moment, or to a pipe."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import sys
from pathlib import Path

from lgvit_edge._support.outputs import followed, is_stdout, is_stream
from lgvit_edge.errors import SinkError, UsageError

STDOUT = "-"
_TAIL = 1 << 20  # bytes: no line is longer
_BEGINS = b'{"'  # every line
_MODE = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_THROUGH = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK


class LineFile:
    """A file of JSON lines that this process alone writes, while it is open.

    It is opened again when it was moved or removed, as logrotate does. A line that a crash or a
    full disk cut off is removed before the next one is written.
    """

    def __init__(self, path: Path, *, max_bytes: int | None = None, keep: int = 3) -> None:
        """Name the file; with ``max_bytes``, older lines move to ``path.1`` to ``path.keep``."""
        self.path, self._max_bytes, self._keep = path, max_bytes, keep
        self._number: int | None = None

    def open(self) -> None:
        """Make or open the file, and mend its end.

        Raises:
            SinkError: another process writes it, or it is no file of JSON lines.
            OSError: it cannot be opened or mended.
        """
        self.close()
        self.path = followed(self.path)
        number = os.open(self.path, _MODE, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(number).st_mode):
                raise SinkError(f"expected a file, found something else: {self.path}")
            _lock(number, self.path)
            _mend(number, self.path)
        except OSError as error:
            os.close(number)
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        except BaseException:
            os.close(number)
            raise
        self._number = number

    def append(self, lines: bytes) -> None:
        """Append whole lines: all of them or, where it raises, none; raises as ``open``."""
        if self._number is None or self._moved():
            self.close()
            self.open()
        assert self._number is not None
        size = os.fstat(self._number).st_size
        if self._max_bytes and size and size + len(lines) > self._max_bytes:
            self._rotate()
            self.append(lines)
            return
        try:
            _write(self._number, lines)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._number, size)
            self.close()  # where nothing could be cut off, the next opening mends it
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def close(self) -> None:
        """Close the file; ``append`` opens it again."""
        if self._number is not None:
            os.close(self._number)
            self._number = None

    def _moved(self) -> bool:
        assert self._number is not None
        try:
            return not os.path.samestat(os.stat(self.path), os.fstat(self._number))
        except FileNotFoundError:
            return True

    def _rotate(self) -> None:
        for number in range(self._keep, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{number}")
            newer = self.path.with_name(f"{self.path.name}.{number - 1}")
            with contextlib.suppress(FileNotFoundError):
                os.replace(newer if number > 1 else self.path, older)
        if not self._keep:
            self.path.unlink(missing_ok=True)


class LineStream:
    """A pipe or a device to which lines are written, or standard output for ``-``."""

    def __init__(self, place: str) -> None:
        """Name it."""
        self.place = place
        self._number: int | None = None
        self._rest = b""  # of a line that was cut off

    def open(self) -> None:
        """Open it.

        Raises:
            SinkError: this process has no standard output.
            OSError: it cannot be opened, or nobody reads from the pipe.
        """
        self.close()
        self._rest = b""
        if self.place == STDOUT:
            try:
                sys.stdout.flush()
                self._number = os.dup(sys.stdout.fileno())
            except (AttributeError, ValueError, OSError):
                raise SinkError("there is no standard output to write to", final=True) from None
            return
        try:
            number = os.open(self.place, _THROUGH)
        except OSError as error:
            reason = "nobody reads from the pipe" if error.errno == errno.ENXIO else error.strerror
            raise OSError(error.errno, reason, self.place) from None
        os.set_blocking(number, True)
        self._number = number

    def append(self, lines: bytes) -> None:
        """Write lines; where it raises, some may have been written.

        Raises:
            SinkError: standard output is closed, for ever.
            OSError: as writing does.
        """
        if self._number is None:
            self.open()
        assert self._number is not None
        lines = self._rest + lines
        left = memoryview(lines)
        try:
            while left:
                left = left[os.write(self._number, left) :]
        except BrokenPipeError:
            self.close()
            if self.place == STDOUT:
                raise SinkError(
                    "standard output is closed: who read it ended", final=True
                ) from None
            raise OSError(errno.EPIPE, "who read the pipe ended", self.place) from None
        except OSError as error:
            written = len(lines) - len(left)
            whole = written == 0 or lines[written - 1 : written] == b"\n"
            self._rest = b"" if whole else lines[written : lines.index(b"\n", written) + 1]
            name = "standard output" if self.place == STDOUT else self.place
            raise OSError(error.errno, error.strerror, name) from None
        self._rest = b""

    def close(self) -> None:
        """Close it; ``append`` opens it again."""
        if self._number is not None:
            os.close(self._number)
            self._number = None


def lines_to(place: str, *, max_bytes: int | None, keep: int) -> LineFile | LineStream:
    """Return what appends lines to a file, a pipe, a device, or for ``-`` standard output.

    Raises:
        UsageError: it is a disk or a socket.
    """
    try:
        place = STDOUT if place != STDOUT and is_stdout(Path(place)) else place
        stream = place == STDOUT or is_stream(Path(place))
    except OSError as error:
        raise UsageError(str(error.strerror)) from None
    if stream:
        if max_bytes is not None:
            raise UsageError(f"expected a file for a limit of its size, found a stream: {place}")
        return LineStream(place)
    return LineFile(Path(place), max_bytes=max_bytes, keep=keep)


def _lock(number: int, path: Path) -> None:
    # On the file itself: the folder of a log may not be ours to write, and a moved file keeps it.
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SinkError(f"another process writes {path}; name another file") from None
    except OSError:
        return  # a file system without locks


def _mend(number: int, path: Path) -> None:
    """End a file with a whole line: remove what a crash left, refuse what is not ours."""
    size = os.fstat(number).st_size
    tail = os.pread(number, min(size, _TAIL), max(0, size - _TAIL))
    before, newline, last = tail.rpartition(b"\n")
    if size > _TAIL and not newline:
        raise _not_ours(path)
    line = before.rpartition(b"\n")[2] if newline else b""
    # Zeros are what a power failure may leave.
    if line and not line.startswith(_BEGINS) and line.strip(b"\0\r"):
        raise _not_ours(path)
    if not last:
        return
    if last.startswith(_BEGINS) and last.endswith(b"}"):
        _write(number, b"\n")
    elif last.startswith(_BEGINS[: len(last)]) or not last.strip(b"\0"):
        os.ftruncate(number, size - len(last))
    else:
        raise _not_ours(path)


def _not_ours(path: Path) -> SinkError:
    return SinkError(f"expected a file of JSON lines, found other content: {path}; name another")


def _write(number: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(number, left) :]
