"""Reads pictures that a program writes to a pipe: JPEG, PPM or YUV4MPEG2, one after the other.

All three say for every picture where it ends, so that it is there as soon as its last byte. Sizes
are bounded before memory is taken.
"""

from __future__ import annotations

import os
import re
import select
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.optional import require
from lgvit_edge.camera.sources.decoding import Jpegs, ToRgb
from lgvit_edge.errors import DataError, SourceError, StalledError

_CHUNK = 1 << 16  # bytes: what a pipe holds
_LINE = 1024  # bytes that a header may have
_PIXELS = 100_000_000  # that a picture may have
_JPEG = 1 << 26  # bytes that a JPEG may have
_PPM = re.compile(rb"P6\s+(?:#[^\n]*\n\s*)*(\d{1,6})\s+(\d{1,6})\s+(\d{1,6})\s")
# Of a JPEG's marker: those that stand in the midst of compressed data are passed over.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_START = b"\xff\xd8\xff"
# YUV4MPEG2's names of formats, and FFmpeg's
_FORMATS = {
    **dict.fromkeys(("420", "420jpeg", "420mpeg2", "420paldv"), "yuv420p"),
    **{"411": "yuv411p", "422": "yuv422p", "444": "yuv444p", "mono": "gray"},
}

Picture = NDArray[np.uint8]


class Pipe:
    """Bytes from a file descriptor, as they come."""

    def __init__(self, descriptor: int, timeout: float) -> None:
        """Read from ``descriptor``, and wait for at most ``timeout`` seconds each time."""
        self._from, self._timeout = descriptor, timeout
        self.waiting = bytearray()  # read, and not yet used
        self._wake, self._lock, self._closed = os.pipe(), threading.Lock(), False
        self._poll = select.poll()
        for number in (descriptor, self._wake[0]):
            self._poll.register(number, select.POLLIN)

    def more(self) -> bool:
        """Wait for more; return whether there is any.

        Raises:
            StalledError: nothing came in time.
        """
        self._wait()
        data = os.read(self._from, _CHUNK)
        self.waiting += data
        return bool(data)

    def need(self, count: int) -> bool:
        """Wait until so many bytes are there; return whether they came. Raises as ``more``."""
        while len(self.waiting) < count:
            if not self.more():
                return False
        return True

    def interrupt(self) -> None:
        """Let whoever waits in another thread find the end."""
        with self._lock:
            if not self._closed:
                os.write(self._wake[1], b"!")

    def close(self) -> None:
        """Close what is this pipe's own; may be called twice."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for number in self._wake:
                    os.close(number)

    def _wait(self) -> None:
        ready = self._poll.poll(self._timeout * 1000)
        if not ready or any(number == self._wake[0] for number, _ in ready):
            raise StalledError(f"nothing came for {self._timeout:g} s")


class Pictures:
    """The pictures in a pipe, of the format that its first bytes tell."""

    def __init__(self, pipe: Pipe) -> None:
        """Read from a pipe, from the first picture on."""
        self._pipe = pipe
        self.fps: float | None = None
        self._read: Callable[[], Picture | None] | None = None
        self._jpegs: Jpegs | None = None
        self._header: dict[str, str] = {}
        self._size, self._format = (0, 0), ""
        self._to_rgb: ToRgb | None = None

    def read(self) -> Picture | None:
        """Return the next picture, None at the end; raises as ``Source.read``."""
        if self._read is None:
            if not self._pipe.need(3):
                if self._pipe.waiting:
                    raise SourceError(f"expected pictures, found {bytes(self._pipe.waiting)!r}")
                return None
            self._read = self._reader(bytes(self._pipe.waiting[:3]))
        return self._read()

    def _reader(self, first: bytes) -> Callable[[], Picture | None]:
        if first == _START:
            self._jpegs = Jpegs()
            return self._jpeg
        if first[:2] == b"P6":
            return self._ppm
        if first == b"YUV":
            self._to_rgb = ToRgb()
            return self._y4m
        raise SourceError(
            "expected JPEGs (ffmpeg -f mjpeg) or YUV4MPEG2 (ffmpeg -f yuv4mpegpipe), "
            f"found {first!r}"
        )

    def _jpeg(self) -> Picture | None:
        assert self._jpegs is not None
        waiting = self._pipe.waiting
        if not self._pipe.need(len(_START)):
            return None
        if not waiting.startswith(_START):
            self._skip()
            raise DataError("there is something else between two JPEGs")
        at = 2
        while True:
            # Segments, each with its length; of a picture they hold smaller ones.
            if at > _JPEG:
                raise SourceError(f"a JPEG has more than {_JPEG:,} bytes: this is none")
            if not self._pipe.need(at + 4):
                raise self._cut()
            kind, length = waiting[at + 1], int.from_bytes(waiting[at + 2 : at + 4], "big")
            if waiting[at] != 0xFF:
                del waiting[:2]
                self._skip()
                raise DataError("a JPEG is damaged")
            if kind == 0xFF:  # may fill the room between segments
                at += 1
                continue
            at += 2 + length
            if kind == 0xDA:  # compressed data follow
                at = self._end_of_scan(at)
                if at < 0:
                    raise self._cut()
                if waiting[at + 1] == 0xD9:
                    break
                if waiting[at + 1] == 0xD8:
                    del waiting[:at]
                    raise DataError("a JPEG is cut off")
        data = bytes(waiting[: at + 2])
        del waiting[: at + 2]
        return self._jpegs(data)

    def _end_of_scan(self, at: int) -> int:
        """Return where the next marker stands; -1 where the pipe ends before."""
        while (found := _MARKER.search(self._pipe.waiting, at)) is None:
            at = max(at, len(self._pipe.waiting) - 1)
            if len(self._pipe.waiting) > _JPEG:
                raise SourceError(f"a JPEG has more than {_JPEG:,} bytes: this is none")
            if not self._pipe.more():
                return -1
        return found.start()

    def _cut(self) -> DataError:
        self._pipe.waiting.clear()
        return DataError("the last JPEG is cut off")

    def _skip(self) -> None:
        """Pass over what is no JPEG."""
        waiting = self._pipe.waiting
        while (start := waiting.find(_START)) < 0:
            del waiting[: max(0, len(waiting) - 2)]
            if not self._pipe.more():
                waiting.clear()
                return
        del waiting[:start]

    def _ppm(self) -> Picture | None:
        waiting = self._pipe.waiting
        while (found := _PPM.match(waiting)) is None:
            if len(waiting) > _LINE or not b"P6".startswith(bytes(waiting[:2])):
                raise SourceError("the pictures do not follow each other as PPM files do")
            if not self._pipe.more():
                return None
        width, height, most = map(int, found.groups())
        if most != 255:
            raise SourceError(f"expected PPM of 8 bits, found values up to {most}")
        _check_size(width, height)
        data = self._take(found.end(), width * height * 3)
        return np.frombuffer(data, np.uint8).reshape(height, width, 3)

    def _take(self, head: int, size: int) -> bytearray:
        """Return what follows a header, and use up both, or neither."""
        waiting = self._pipe.waiting
        if not self._pipe.need(head + size):
            waiting.clear()
            raise DataError("the last picture is cut off")
        data = waiting[head : head + size]
        del waiting[: head + size]
        return data

    def _y4m(self) -> Picture | None:
        waiting = self._pipe.waiting
        while (end := waiting.find(b"\n")) < 0 or not waiting.startswith(b"FRAME"):
            if end >= 0:
                self._take_header(waiting[:end].decode("latin-1"))  # maybe of another size
                del waiting[: end + 1]
            elif len(waiting) > _LINE:
                raise SourceError("the pictures do not follow each other as in YUV4MPEG2")
            elif not self._pipe.more():
                return None
        assert self._to_rgb is not None
        frame: Any = require("av", extra="camera").VideoFrame(*self._size, self._format)
        planes = frame.planes
        data = self._take(end + 1, sum(plane.width * plane.height for plane in planes))
        at = 0
        for plane in planes:
            rows = np.frombuffer(plane, np.uint8)[: plane.height * plane.line_size]
            rows = rows.reshape(plane.height, plane.line_size)
            part = np.frombuffer(data, np.uint8, plane.width * plane.height, at)
            rows[:, : plane.width] = part.reshape(plane.height, plane.width)
            at += len(part)
        return self._to_rgb(frame)

    def _take_header(self, line: str) -> None:
        name, *words = line.split(" ")
        if name != "YUV4MPEG2":
            raise SourceError("the pictures do not follow each other as in YUV4MPEG2")
        told = {word[:1]: word[1:] for word in words if not word.startswith("X")}
        width, height = told.get("W", ""), told.get("H", "")
        if not (width.isdecimal() and height.isdecimal()):
            raise SourceError("YUV4MPEG2 says no size")
        self._size = int(width[:9]), int(height[:9])
        _check_size(*self._size)
        colours = told.get("C", "420jpeg")
        if colours not in _FORMATS:
            raise SourceError(
                f"expected YUV4MPEG2 with 8 bits ({', '.join(_FORMATS)}), found {colours}; "
                "give ffmpeg: -pix_fmt yuv420p"
            )
        self._format = _FORMATS[colours]
        if "XCOLORRANGE=FULL" in words and self._format.startswith("yuv"):
            self._format = self._format.replace("yuv", "yuvj")
        rate = re.fullmatch(r"(\d+):(\d+)", told.get("F", ""))
        self.fps = int(rate[1]) / int(rate[2]) if rate and int(rate[1]) and int(rate[2]) else None


def _check_size(width: int, height: int) -> None:
    if not 0 < width * height <= _PIXELS:
        raise SourceError(
            f"expected pictures of at most {_PIXELS // 1_000_000} million pixels, "
            f"found {width} x {height}"
        )
