"""Annotated video files, a file after another for each camera."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Collection, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.numbers import real, whole
from lgvit_edge._support.optional import require
from lgvit_edge._support.outputs import check_folder
from lgvit_edge.camera.drawing import draw
from lgvit_edge.camera.shot import Shot
from lgvit_edge.camera.sinks.base import Sink
from lgvit_edge.camera.sinks.names import IN_FILES, as_name
from lgvit_edge.errors import SinkError, UsageError, in_one_line

SUFFIX = ".mp4"
_CODECS = ("libx264", "libopenh264", "mpeg4")  # the first that is there
_OPTIONS = {"libx264": {"preset": "superfast", "tune": "zerolatency", "crf": "26"}}
_BITS = 4  # a second and pixel, for encoders that are not told a quality
# A file of fragments, written through at once: readable however the process ends.
_CONTAINER = {
    "movflags": "empty_moov+default_base_moof",
    "frag_duration": "1000000",
    "flush_packets": "1",
}
_UNIT = Fraction(1, 1000)  # seconds: some encoders take no finer one
_KEY_EVERY = 50  # frames
_NO_RATE = 10.0  # frames per second of a recording that does not say
_GAP = 60.0  # seconds without a frame after which a live camera gets another file
_BACK = 1.0  # seconds that the clock may be set back within a file


class VideoFiles(Sink):
    """Writes what cameras see, with the answers drawn on it, to ``FOLDER/CAMERA-TIME.mp4``.

    Files play at the speed at which things happened, also where frames were dropped. Another file
    is begun when one is large or long enough, when the picture changes its size, and after a long
    gap. The oldest files of a camera are removed.
    """

    name = "video"
    images = True
    room = 8

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        max_mb: float = 1000,
        max_minutes: float = 60,
        keep: int = 24,
        codec: str | None = None,
        recorded: Collection[str] = (),
    ) -> None:
        """Name the folder.

        Args:
            folder: where the files go; ``FOLDER/PREFIX.mp4`` begins their names with PREFIX.
            max_mb: megabytes after which another file is begun.
            max_minutes: minutes, as they play, after which another file is begun.
            keep: files of each camera that stay, the one being written included.
            codec: FFmpeg's name of an encoder; None: H.264 where there is one, else MPEG-4.
            recorded: cameras that are recordings: their frames come faster or slower than they
                play, so that their numbers and rates tell the time.

        Raises:
            UsageError: a number is out of range.
        """
        place = Path(folder)
        prefix = place.suffix.lower() == SUFFIX
        self._folder = place.parent if prefix else place
        self._prefix = f"{place.stem}-" if prefix else ""
        for name, value in {"max_mb": max_mb, "max_minutes": max_minutes}.items():
            if not 0.001 <= real(value) < float("inf"):
                raise UsageError(f"{name} must be a number of at least 0.001, found {value!r}")
        self._bytes, self._seconds = max_mb * 1e6, max_minutes * 60
        self._keep = whole("keep", keep)
        self._codecs = _CODECS if codec is None else (codec,)
        self._recorded = frozenset(recorded)
        self._clips: dict[str, _Clip] = {}

    def open(self) -> None:
        """Make the folder, and encode a picture.

        Raises:
            UsageError: the folder cannot be written, or there is no such encoder.
            MissingDependency: PyAV is not installed.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            check_folder(self._folder)
        except OSError as error:
            text = f"cannot write to {self._folder}: {error.strerror}; name another folder"
            raise UsageError(text) from None
        trial = self._folder / f".{os.getpid()}.trial{SUFFIX}"
        try:
            clip = _Clip(trial, (64, 48), self._codecs, 0.0)
            clip.write(np.zeros((48, 64, 3), np.uint8), 0.0)
            clip.close()
        except SinkError as error:
            raise UsageError(str(error)) from None
        except OSError:
            pass  # a full disk may be less full later
        finally:
            trial.unlink(missing_ok=True)

    def take(self, shot: Shot) -> None:
        """Write a frame; it is safe about a second later."""
        if shot.image is None:
            return
        recorded = shot.camera in self._recorded
        when = shot.frame / (shot.fps or _NO_RATE) if recorded else shot.time
        height, width = shot.image.shape[:2]
        clip = self._clips.get(shot.camera)
        if clip is not None and not self._goes_on(clip, (width, height), when, recorded):
            del self._clips[shot.camera]
            clip.close()
            clip = None
        if clip is None:
            clip = _Clip(self._place(shot), (width, height), self._codecs, when)
            self._clips[shot.camera] = clip
            self._remove_oldest(shot.camera, clip.path)
        try:
            clip.write(draw(shot.image, shot.answers), when)
        except BaseException:
            del self._clips[shot.camera]
            clip.give_up()
            raise

    def close(self) -> None:
        """End all files."""
        clips, self._clips = list(self._clips.values()), {}
        with contextlib.ExitStack() as stack:
            for clip in clips:
                stack.callback(clip.close)

    def _goes_on(self, clip: _Clip, size: tuple[int, int], when: float, recorded: bool) -> bool:
        """Return whether the frame belongs into this file."""
        return (
            clip.size == size
            and clip.path.exists()
            and clip.bytes < self._bytes
            and when - clip.start < self._seconds
            and when - clip.last > -_BACK
            and (recorded or when - clip.last < _GAP)
        )

    def _place(self, shot: Shot) -> Path:
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(shot.time))
        first = f"{self._begin(shot.camera)}{moment}"
        names = (f"{first}{end}{SUFFIX}" for end in ("", *(f"-{i}" for i in range(2, 10_000))))
        return next(path for name in names if not (path := self._folder / name).exists())

    def _begin(self, camera: str) -> str:
        return f"{self._prefix}{as_name(camera, IN_FILES)}-"

    def _remove_oldest(self, camera: str, new: Path) -> None:
        ours = re.compile(re.escape(self._begin(camera)) + r"\d{8}T\d{6}Z(-\d+)?\.mp4")
        files = [path for path in self._folder.iterdir() if ours.fullmatch(path.name)]
        older = sorted((path for path in files if path != new), key=_age, reverse=True)
        for path in older[self._keep - 1 :]:
            path.unlink(missing_ok=True)


class _Clip:
    """One file that is being written."""

    def __init__(
        self, path: Path, size: tuple[int, int], codecs: Collection[str], start: float
    ) -> None:
        """Begin a file of pictures of ``size``, width and height, ``start`` in seconds."""
        av = require("av", extra="camera")
        self.path, self.size, self.start, self.last = path, size, start, start
        self._shown = -1  # when the last frame is shown, in units
        self._av = av
        width, height = (side + side % 2 for side in size)  # encoders take even sizes
        self._container: Any = av.open(str(path), "w", format="mp4", options=_CONTAINER)
        self._stream: Any = None
        for codec in codecs:
            with contextlib.suppress(ValueError, LookupError):  # it is not there
                self._stream = self._container.add_stream(codec, rate=30)
                break
        else:
            self.give_up()
            raise SinkError(f"PyAV has no encoder called {' or '.join(codecs)}", final=True)
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.time_base, context.gop_size, context.thread_count = _UNIT, _KEY_EVERY, 1
        context.options = _OPTIONS.get(codec, {})
        if not context.options:
            context.bit_rate = _BITS * width * height

    @property
    def bytes(self) -> int:
        """How long the file is."""
        return self.path.stat().st_size

    def write(self, image: NDArray[np.uint8], when: float) -> None:
        """Write a picture ``[H, W, 3] uint8`` RGB, seen at ``when`` seconds.

        Raises:
            OSError: it cannot be written.
            SinkError: it cannot be encoded.
        """
        odd = image.shape[0] % 2, image.shape[1] % 2
        if any(odd):
            image = np.pad(image, ((0, odd[0]), (0, odd[1]), (0, 0)), "edge")
        frame = self._av.VideoFrame.from_ndarray(image, format="rgb24")
        self._shown = max(self._shown + 1, round((when - self.start) / _UNIT))
        frame.pts, frame.time_base = self._shown, _UNIT
        with self._named():
            self._container.mux(self._stream.encode(frame))
        self.last = when

    def close(self) -> None:
        """End the file; raises as ``write``."""
        try:
            with self._named():
                self._container.mux(self._stream.encode())
                self._container.close()
        except BaseException:
            self.give_up()
            raise

    def give_up(self) -> None:
        """Close the file after an error: what is whole of it stays, of an empty one nothing."""
        with contextlib.suppress(Exception):
            self._container.close()
        with contextlib.suppress(OSError):
            if whole := _whole_bytes(self.path):
                os.truncate(self.path, whole)
            else:
                self.path.unlink()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Raise errors of PyAV as what they are."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno or errno.EIO, error.strerror, str(self.path)) from None
        except (self._av.error.FFmpegError, ValueError) as error:
            text = f"{self.path} cannot be encoded: {in_one_line(error)}"
            raise SinkError(text, final=True) from None


def _whole_bytes(path: Path) -> int:
    """Return where the last whole fragment of a file ends; 0 where there is none."""
    end, size, fragments = 0, path.stat().st_size, 0
    with path.open("rb") as file:
        while end + 8 <= size:
            file.seek(end)
            head = file.read(8)
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            if length < 8 or end + length > size:
                break
            end += length
            fragments = end if kind == b"mdat" else fragments
    return fragments


def _age(path: Path) -> tuple[float, str]:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime, path.name
    return 0.0, path.name
