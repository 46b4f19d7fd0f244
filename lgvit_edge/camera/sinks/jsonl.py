"""Answers as JSON lines, to a file or to standard output."""

from __future__ import annotations

import os
from collections.abc import Sequence
from shlex import quote

from lgvit_edge._support.finite_json import dumps
from lgvit_edge._support.numbers import real
from lgvit_edge.camera.shot import Answer, Shot
from lgvit_edge.camera.sinks.base import Sink
from lgvit_edge.camera.sinks.lines import lines_to
from lgvit_edge.errors import SinkError, UsageError


class JsonLines(Sink):
    """Appends one JSON object for each answer, a line each."""

    name = "jsonl"
    batch = 256

    def __init__(
        self, path: str | os.PathLike[str], *, max_mb: float | None = None, keep: int = 3
    ) -> None:
        """Name the file.

        Args:
            path: a file, a pipe, a device, or ``-`` for standard output.
            max_mb: megabytes after which a new file is begun; None: never.
            keep: how many older files then stay, as ``path.1`` to ``path.keep``.

        Raises:
            UsageError: a number is out of range.
        """
        if max_mb is not None and not 0.001 <= real(max_mb) < float("inf"):
            raise UsageError(f"max_mb must be a number of at least 0.001, found {max_mb!r}")
        if isinstance(keep, bool) or not isinstance(keep, int) or not 0 <= keep <= 1000:
            raise UsageError(f"keep must be a whole number from 0 to 1000, found {keep!r}")
        max_bytes = None if max_mb is None else int(max_mb * 1e6)
        self._place = os.fspath(path)
        self._lines = lines_to(self._place, max_bytes=max_bytes, keep=keep)

    def open(self) -> None:
        """Open the file, and mend its end."""
        try:
            self._lines.open()
        except SinkError as error:
            raise UsageError(str(error)) from None
        except FileNotFoundError:
            folder = os.path.dirname(self._place)
            text = f"no such folder: {folder}; run: mkdir -p {quote(folder)}"
            raise UsageError(text) from None
        except OSError as error:
            raise UsageError(f"cannot write to {self._place}: {error.strerror}") from None

    def take(self, shot: Shot) -> None:
        """Append the answers of a shot."""
        self.take_batch([shot])

    def take_batch(self, shots: Sequence[Shot]) -> None:
        """Append the answers of shots, all of them or none."""
        self._lines.append(b"".join(as_line(a) for shot in shots for a in shot.answers))

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def as_line(answer: Answer, **more: object) -> bytes:
    """Return an answer as a line, with what else is to be said first."""
    return dumps({**more, **answer.to_json()}, indent=None).encode() + b"\n"
