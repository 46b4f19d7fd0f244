"""Reads pictures from standard input, as ``ffmpeg -f mjpeg -`` writes them."""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.camera.sources.base import Source, SourceKind
from lgvit_edge.camera.sources.pipes import Pictures, Pipe
from lgvit_edge.errors import UsageError


class StandardInput(Source):
    """Pictures that another program pipes into this one; it sets the pace."""

    def __init__(self, address: str, timeout: float) -> None:
        """Begin to read; raises as ``SourceKind.open``."""
        self._pipe = Pipe(sys.stdin.fileno(), timeout)
        self._pictures = Pictures(self._pipe)

    def read(self) -> NDArray[np.uint8] | None:
        """Return the next picture; raises as ``Source.read``."""
        image = self._pictures.read()
        self.fps = self._pictures.fps
        return image

    def interrupt(self) -> None:
        """Let a ``read`` in another thread return soon."""
        self._pipe.interrupt()

    def close(self) -> None:
        """Stop reading; standard input stays open."""
        self._pipe.close()


def _check(address: str) -> None:
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise UsageError(
            "expected pictures on standard input; pipe them in: ffmpeg -i IN -f mjpeg - | "
            "lgvit-edge camera --source - ..."
        )


STDIN = SourceKind(
    "stdin",
    "-",
    "pictures from another program, as JPEG or YUV4MPEG2",
    live=False,
    matches=lambda address: address == "-",
    open=StandardInput,
    check=_check,
    repeats=False,
)
