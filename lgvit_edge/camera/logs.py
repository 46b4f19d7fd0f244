"""Events as lines of a log: on standard error, and in a file that rotates."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import threading
from datetime import datetime, timezone
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

from lgvit_edge._support.numbers import whole
from lgvit_edge._support.outputs import check_file, followed
from lgvit_edge._support.text import escaped
from lgvit_edge.camera.shot import Event
from lgvit_edge.camera.sources.base import without_secrets
from lgvit_edge.errors import UsageError

# As the journal counts: a line that begins so has this priority there.
_PRIORITIES = {"info": "<6>", "warning": "<4>", "error": "<3>"}
_LONGEST = 2000  # characters of an event's text
_SMALLEST = 10_000  # bytes of a file: room for several of the longest lines


class EventLog:
    """Writes a line for each event: time, level, camera, text. Any thread may tell it events.

    What cannot be written is counted, and neither raises nor delays: the first failure is told on
    standard error, and the file tells how many lines it lacks once it can be written again.
    """

    def __init__(
        self,
        file: Path | None = None,
        *,
        size: int = 10_000_000,
        keep: int = 5,
        utc: bool = False,
        stderr: bool = True,
    ) -> None:
        """Open the log; both of its places are optional.

        Args:
            file: gets the lines.
            size: bytes after which it is renamed to ``FILE.1``, and a new one begins.
            keep: how many such older files are kept, ``FILE.1`` being the newest.
            utc: whether times are UTC; otherwise they are local, with their distance from UTC.
            stderr: whether standard error gets the lines too; where that is systemd's journal,
                with their priority instead of their time.

        Raises:
            UsageError: a number makes no sense.
            OSError: the file cannot be written or renamed; ``strerror`` says why, and the cure.
        """
        if whole("the log's size", size) < _SMALLEST:
            raise UsageError(f"the log's size must be at least {_SMALLEST} bytes, found {size}")
        self._utc, self._stderr = utc, stderr
        self._journal = is_journal(sys.stderr)
        self._lock = threading.Lock()
        self._missing, self._fault = 0, ""
        self._file: _File | None = None
        if file is not None:
            check_file(file, streams=False)
            self._file = _File(followed(file), size, whole("the number of older logs", keep))

    @property
    def missing(self) -> int:
        """Lines that the file lacks since it cannot be written; 0 while it can."""
        return self._missing

    def event(self, event: Event) -> None:
        """Write one event."""
        text = without_secrets(event.text)
        if len(text) > _LONGEST:
            text = f"{text[:_LONGEST]} ...({len(text) - _LONGEST} characters left out)"
        who = f"{event.camera}: " if event.camera else ""
        with self._lock:
            self._show(event.level, event.time, f"{who}{text}")
            if self._file is not None:
                self._write(self._line(event.time, event.level, f"{who}{text}"), event.time)

    def close(self) -> None:
        """Close the file; later events go to standard error only. May be called twice."""
        with self._lock:
            if self._file is not None:
                self._file.give_up()
                self._file = None

    def _line(self, moment: float, level: str, text: str) -> str:
        when = datetime.fromtimestamp(moment, timezone.utc)
        stamp = (when if self._utc else when.astimezone()).isoformat(timespec="milliseconds")
        return f"{stamp} {level} {_one_line(text)}"

    def _show(self, level: str, moment: float, text: str) -> None:
        if not self._stderr or sys.stderr is None:
            return
        # Of the two, the journal knows the time itself.
        line = f"{_PRIORITIES[level]}{_one_line(text)}" if self._journal else None
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more; it is closed
            sys.stderr.write((line or self._line(moment, level, text)) + "\n")
            sys.stderr.flush()

    def _write(self, line: str, moment: float) -> None:
        assert self._file is not None
        if self._missing:
            lack = f"{self._missing} lines are missing here: {self._fault}"
            line = f"{self._line(moment, 'warning', lack)}\n{line}"
        fault = self._file.put(line)
        if fault is None:
            if self._missing:
                self._show("info", moment, f"log {self._file.baseFilename} works again")
            self._missing, self._fault = 0, ""
            return
        if fault != self._fault:
            self._show("error", moment, f"log {self._file.baseFilename} fails: {fault}")
        self._missing, self._fault = self._missing + 1, fault


class _File(RotatingFileHandler):
    """A rotating file that says what became of a line, and begins anew after a failure."""

    def __init__(self, path: Path, size: int, keep: int) -> None:
        self._failures: list[OSError] = []
        super().__init__(path, maxBytes=size, backupCount=keep, encoding="utf-8")

    def put(self, line: str) -> str | None:
        """Write a line; return why it could not be written."""
        self._failures.clear()
        self.handle(logging.makeLogRecord({"msg": line}))
        if not self._failures:
            return None
        self.give_up()  # with what is left in its buffer, which would come late and torn
        return self._failures[0].strerror or str(self._failures[0])

    def give_up(self) -> None:
        """Close the file, whether or not the rest can be written; the next line opens it again."""
        if self.stream is not None:
            with contextlib.suppress(OSError):
                self.stream.close()
            self.stream = None

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Keep what was raised, where logging would print a traceback."""
        error = sys.exc_info()[1]
        self._failures.append(
            error if isinstance(error, OSError) else OSError(errno.EIO, str(error))
        )

    def _open(self) -> TextIOWrapper:
        """Open the file behind its last whole line."""
        stream = super()._open()
        try:
            with open(self.baseFilename, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 1))
                if file.read() not in (b"", b"\n"):
                    stream.write("\n")  # a killed process or a full disk cut a line off
        except OSError:
            stream.close()
            raise
        return stream


def _one_line(text: str) -> str:
    return escaped(text).replace("\n", "\\n").replace("\t", "\\t")


def is_journal(stream: TextIO | None) -> bool:
    """Return whether a stream goes to systemd's journal, by the file that systemd says that is."""
    try:
        about = os.fstat(stream.fileno()) if stream is not None else None
    except (OSError, ValueError):  # closed, or no file
        return False
    told = os.environ.get("JOURNAL_STREAM")
    return about is not None and told == f"{about.st_dev}:{about.st_ino}"
