"""Reads any GStreamer pipeline, and CSI cameras of a Jetson, through a ``gst-launch-1.0`` process.

OpenCV's wheels have no GStreamer in them, and a process of its own can hang or crash alone. It
writes PPM: every picture says its size, so the size may change, and its colours are exact.
YUV4MPEG2 says the size once, and GStreamer's ``y4menc`` goes on under it after a change. For RTSP
a pipeline delivers frames one frame time sooner than PyAV (benchmarks/results/sources.txt).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.text import escaped
from lgvit_edge.camera.sources.base import Source, SourceKind, without_secrets
from lgvit_edge.camera.sources.pipes import Pictures, Pipe
from lgvit_edge.errors import SourceError, StalledError, UsageError

_LAUNCH = "gst-launch-1.0"
# The newest picture alone waits, in front of what is slow.
_TAIL = (
    "! queue leaky=downstream max-size-buffers=1 max-size-bytes=0 max-size-time=0 "
    "! videoconvert ! video/x-raw,format=RGB ! pnmenc ! fdsink fd=3 sync=false"
)
# The shell waits for its input to end, which it does when we close it or die, however: then it
# kills the pipeline, and waits for it, as nobody else might in a container. What gst-launch-1.0
# prints goes to the errors; pictures have descriptor 3.
_SHELL = (
    f'{_LAUNCH} -q "$@" 3>&1 1>&2 </dev/null & exec 1>&-; read -r line; kill -9 $!; wait $! 2>&-'
)
_CSI = re.compile(r"csi:(\d+)")
_CSI_PIPELINE = (
    "nvarguscamerasrc sensor-id={} ! video/x-raw(memory:NVMM),width=1280,height=720,framerate=30/1 "
    "! nvvidconv ! video/x-raw,format=BGRx"
)
_SAID = 4096  # bytes of what it printed that are kept
_ERROR = re.compile(
    r"ERROR: from element \S*?(\w+): (.*)(?:\nAdditional debug info:\n.*\n(.*))?"
    r"|WARNING: erroneous pipeline: (.*)"
)
_FAREWELL = 2.0  # seconds that the shell has to end


class Pipeline(Source):
    """A GStreamer pipeline in a process that ends with us."""

    def __init__(self, pipeline: str, timeout: float) -> None:
        """Start the pipeline and wait for its first picture; raises as ``SourceKind.open``."""
        _check_installed()
        self._said = b""
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _SHELL, "sh", *_words(pipeline), *shlex.split(_TAIL)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # a group that can be killed; Ctrl-C is ours to handle
        )
        assert self._process.stdout is not None and self._process.stderr is not None
        os.set_blocking(self._process.stderr.fileno(), False)
        self._pipe = Pipe(self._process.stdout.fileno(), timeout)
        self._pictures = Pictures(self._pipe)
        self._begun = False

    def read(self) -> NDArray[np.uint8] | None:
        """Return the next picture; raises as ``Source.read``."""
        try:
            image = self._pictures.read()
        except StalledError as error:
            said = self._listen()
            text = "the pipeline has delivered no picture"
            raise StalledError(f"{text}: {said}" if said else f"{text}: {error}") from None
        said = self._listen()
        if image is None and (said or not self._begun):
            raise SourceError(f"the pipeline ended: {said or 'it delivered no picture'}")
        self._begun = True
        return image

    def interrupt(self) -> None:
        """Let a ``read`` in another thread return soon."""
        self._pipe.interrupt()

    def close(self) -> None:
        """Kill the pipeline."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_FAREWELL)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._pipe.close()
        for file in (self._process.stdout, self._process.stderr):
            assert file is not None
            file.close()

    def _listen(self) -> str:
        """Return what the pipeline printed of late, in one line, without passwords."""
        assert self._process.stderr is not None
        while data := self._process.stderr.read(1 << 16):
            self._said = (self._said + data)[-_SAID:]
        text = escaped(self._said.decode(errors="replace")).strip()
        if found := _ERROR.search(text):
            text = ": ".join(part.rstrip(". ") for part in found.groups() if part)
        text = text.rpartition("\n")[2]
        if 'no element "pnmenc"' in text:
            text += "; run: sudo apt install gstreamer1.0-plugins-bad"
        return without_secrets(text)


def _words(pipeline: str) -> list[str]:
    return shlex.split(pipeline)


def _check_installed() -> None:
    if shutil.which(_LAUNCH) is None:
        raise UsageError(
            f"{_LAUNCH} is needed for this source and is not installed; run: sudo apt install "
            "gstreamer1.0-tools gstreamer1.0-plugins-good gstreamer1.0-plugins-bad"
        )


def _pipeline_of(address: str) -> str:
    return address.removeprefix("gst:").strip()


def _check(address: str) -> None:
    pipeline = _pipeline_of(address)
    try:
        words = _words(pipeline)
    except ValueError as error:
        text = without_secrets(pipeline)
        raise UsageError(f"this pipeline cannot be read: {error}: {text}") from None
    if not words or "!" in (words[0], words[-1]):
        raise UsageError(
            f"expected a GStreamer pipeline, found {without_secrets(address)!r}; an example: "
            f"{PIPELINE.example}"
        )
    last = pipeline.rpartition("!")[2].split()
    if last and re.fullmatch(r"\w*sink", last[0]):
        raise UsageError(f"leave {last[0]} out: the pipeline must end with its pictures")
    _check_installed()


CSI = SourceKind(
    "csi",
    "csi:0",
    "a CSI camera of a Jetson",
    live=True,
    matches=lambda address: address.startswith("csi:"),
    open=lambda address, timeout: Pipeline(_CSI_PIPELINE.format(address[4:]), timeout),
    check=lambda address: _check_csi(address),
)
PIPELINE = SourceKind(
    "gstreamer",
    "'gst:v4l2src device=/dev/video0 ! jpegdec'",
    "any GStreamer pipeline",
    live=True,
    matches=lambda address: address.startswith("gst:") or " ! " in address,
    open=lambda address, timeout: Pipeline(_pipeline_of(address), timeout),
    check=_check,
)


def _check_csi(address: str) -> None:
    if not _CSI.fullmatch(address):
        raise UsageError(f"expected the number of a CSI camera, such as csi:0, found {address!r}")
    _check_installed()
