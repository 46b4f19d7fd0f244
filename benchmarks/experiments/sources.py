"""Measures the readers of cameras on the same pictures: OpenCV, PyAV and GStreamer, in turn.

``python -m lgvit_edge.benchmarks.experiments.sources`` serves an RTSP camera (H.264) and an MJPEG
camera on this machine, 640 x 480, whose frames say when they were drawn. It measures how old they
are when a reader delivers them, to somebody who takes each at once and to somebody slower than the
camera, and how many are missing. Of a video file it measures how fast it is decoded.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from lgvit_edge._support.optional import require
from lgvit_edge._support.terminal import console, progress_bar
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, run_command
from lgvit_edge.benchmarks.experiments.sources_served import HEIGHT, WIDTH, RtspServer, drawn, shown
from lgvit_edge.benchmarks.report.terminal import table_of
from lgvit_edge.camera.sources.base import Source, SourceKind, kind_of
from lgvit_edge.camera.sources.connection import Connection
from lgvit_edge.errors import SourceError, UsageError

Image = NDArray[np.uint8]
_TIMEOUT = 10.0  # seconds
_SLOW = 0.1  # seconds for a frame: three times as long as the camera takes
_WARM = 10  # frames that are not counted
_MJPEG = """
import sys, time
from itertools import count
import cv2
from lgvit_edge.benchmarks.experiments.sources_served import MjpegServer, drawn, paced

def frames():
    return (cv2.imencode(".jpg", drawn(number))[1].tobytes() for number in count())

with MjpegServer(lambda: paced(float(sys.argv[1]), frames())) as server:
    print(server.address, flush=True)
    time.sleep(1e6)
"""


class _OpenCv(Source):
    """What OpenCV's own FFmpeg makes of an address."""

    def __init__(self, address: str, timeout: float) -> None:
        self._cv2 = require("cv2", extra="camera")
        self._capture = self._cv2.VideoCapture(address, self._cv2.CAP_FFMPEG)
        self._capture.set(self._cv2.CAP_PROP_BUFFERSIZE, 1)
        if not self._capture.isOpened():
            raise SourceError(f"OpenCV cannot open {address}")

    def read(self) -> Image | None:
        there, image = self._capture.read()
        if not there:
            return None
        rgb: Image = self._cv2.cvtColor(image, self._cv2.COLOR_BGR2RGB)
        return rgb

    def close(self) -> None:
        self._capture.release()


def main(
    turns: Annotated[int, typer.Option(min=1, help="Connections of each kind.")] = 5,
    frames: Annotated[int, typer.Option(min=20, help="Frames of each connection.")] = 90,
    fps: Annotated[int, typer.Option(min=1, help="Frames per second of the cameras.")] = 30,
    json_file: JsonFile = None,
) -> None:
    """Times the readers of cameras and of a video file."""
    record = Record(json_file)
    if reason := RtspServer.missing():
        raise UsageError(f"this experiment {reason}")
    lives: list[dict[str, Any]] = []
    files: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(progress_bar("reading"))
        rtsp = stack.enter_context(RtspServer(fps=fps)).address
        mjpeg = stack.enter_context(_mjpeg(fps))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        video = _write(folder / "video.mp4", 600)
        arms = [
            (camera, reader)
            for camera, each in _live(rtsp, mjpeg).items()
            for reader in each.items()
        ]
        for turn in range(turns):
            for place, (camera, (reader, (kind, address))) in enumerate(arms):
                progress(turn * len(arms) + place, turns * len(arms))
                for takes, pause in (("at once", 0.0), ("every 100 ms", _SLOW)):
                    for threaded in (True, False) if reader == "opencv" else (True,):
                        count = frames if not pause else frames // 2
                        row = _watch(kind, address, count, pause, threaded)
                        name = reader if threaded else f"{reader} alone"
                        lives.append({"camera": camera, "reader": name, "takes": takes} | row)
            for reader, (kind, address) in _recorded(video).items():
                files.append({"reader": reader} | _decode(kind, address))
    live_rows = _medians(lives, ("camera", "reader", "takes"))
    file_rows = _medians(files, ("reader",))
    cells = (
        "{camera} | {reader} | {takes} | {open_ms:,.0f} | {p50_ms:,.1f} | {p99_ms:,.1f} | "
        "{missing:g} | {replaced:g}"
    )
    numbers = ("open (ms)", "age p50 (ms)", "p99", "missing", "replaced")
    console.print(table_of(live_rows, cells, "camera", "reader", "takes", numbers=numbers))
    cells = "{reader} | {per_second:,.0f} | {frames:g}"
    console.print(table_of(file_rows, cells, "file", numbers=("frames/s", "frames of 600")))
    raw = {"live": lives, "file": files}
    size = [WIDTH, HEIGHT]
    record.write(turns=turns, fps=fps, size=size, live=live_rows, file=file_rows, raw=raw)


def _live(rtsp: str, mjpeg: str) -> dict[str, dict[str, tuple[SourceKind, str]]]:
    """Return the readers of each camera, with the addresses that they take."""
    opencv = _kind(live=True)
    rtspsrc = f"gst:rtspsrc location={rtsp} latency=0 protocols=tcp ! rtph264depay ! avdec_h264"
    souphttpsrc = f"gst:souphttpsrc location={mjpeg} is-live=true ! multipartdemux ! jpegdec"
    return {
        name: {
            "opencv": (opencv, address),
            "pyav": (kind_of(address), address),
            "gstreamer": (kind_of(pipeline), pipeline),
        }
        for name, address, pipeline in (("rtsp", rtsp, rtspsrc), ("mjpeg", mjpeg, souphttpsrc))
    }


def _recorded(video: Path) -> dict[str, tuple[SourceKind, str]]:
    pipeline = f"gst:filesrc location={video} ! decodebin"
    return {
        "opencv": (_kind(live=False), str(video)),
        "pyav": (kind_of(str(video)), str(video)),
        "gstreamer": (kind_of(pipeline), pipeline),
    }


def _kind(*, live: bool) -> SourceKind:
    return SourceKind("opencv", "", "", live, lambda address: True, _OpenCv)


def _watch(
    kind: SourceKind, address: str, frames: int, pause: float, threaded: bool
) -> dict[str, Any]:
    """Read frames of a camera; return how old they were, in ms, and how many were missing.

    Replaced are those that our thread read and a newer one took the place of.
    """
    begun = time.monotonic()
    numbers, ages, replaced, opened = [], [], 0, 0.0
    with _pictures(kind, address, threaded) as take:
        for i in range(frames + _WARM):
            image, dropped = take()
            number, age = shown(image)
            opened = opened or time.monotonic() - begun
            if i >= _WARM:
                numbers.append(number)
                ages.append(age * 1e3)
                replaced += dropped if i > _WARM else 0
            time.sleep(pause)
    return {
        "open_ms": opened * 1e3,
        "p50_ms": float(np.median(ages)),
        "p99_ms": float(np.percentile(ages, 99)),
        "last_ms": ages[-1],
        "missing": numbers[-1] - numbers[0] + 1 - len(numbers) - replaced,
        "replaced": replaced,
        "frames": frames,
    }


@contextlib.contextmanager
def _pictures(
    kind: SourceKind, address: str, threaded: bool
) -> Iterator[Callable[[], tuple[Image, int]]]:
    """Yield what returns the next picture, and how many were replaced before it."""
    if not threaded:
        with contextlib.closing(kind.open(address, _TIMEOUT)) as source:

            def read() -> tuple[Image, int]:
                image = source.read()
                if image is None:
                    raise SourceError("the stream ended")
                return image, 0

            yield read
        return
    connection = Connection(kind, address, _TIMEOUT)

    def take() -> tuple[Image, int]:
        dropped = 0
        while True:
            news = connection.take(_TIMEOUT)
            dropped += news.dropped
            if news.picture is not None:
                return news.picture.image, dropped
            if news.over:
                raise news.failure or SourceError("the stream ended")

    try:
        yield take
    finally:
        connection.close()
        while not connection.gone:
            time.sleep(0.01)


def _decode(kind: SourceKind, address: str) -> dict[str, Any]:
    """Read a file to its end; opening it counts."""
    begun, count = time.monotonic(), 0
    with contextlib.closing(kind.open(address, _TIMEOUT)) as source:
        while source.read() is not None:
            count += 1
    return {"per_second": count / (time.monotonic() - begun), "frames": count}


def _write(path: Path, frames: int) -> Path:
    """Write a video, H.264, 30 frames a second."""
    av = require("av", extra="camera")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(drawn(number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@contextlib.contextmanager
def _mjpeg(fps: int) -> Iterator[str]:
    """Yield the address of an MJPEG camera in a process of its own."""
    command = [sys.executable, "-c", _MJPEG, str(fps)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def _medians(rows: list[dict[str, Any]], names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return one row for each combination of names, with the median of each number."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return [
        dict(zip(names, key, strict=True))
        | {n: float(np.median([row[n] for row in group])) for n in group[0] if n not in names}
        for key, group in groups.items()
    ]


if __name__ == "__main__":
    run_command(main)
