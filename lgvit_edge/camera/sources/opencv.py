"""Reads USB cameras, with OpenCV.

It knows the drivers of every system, which is all that is asked here; for networks and files PyAV
measured better (benchmarks/results/sources.txt). It keeps one frame, so that no queue grows. No
camera was at hand to measure it with.
"""

from __future__ import annotations

import math
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.optional import require
from lgvit_edge.camera.sources.base import Source, SourceKind
from lgvit_edge.errors import SourceError, StalledError, UsageError

_DEVICE = re.compile(r"\d+|/dev/(video\d+|v4l/.+)")


class UsbCamera(Source):
    """A camera that this machine's drivers know."""

    def __init__(self, address: str, timeout: float) -> None:
        """Open ``0`` or ``/dev/video0``; raises as ``SourceKind.open``."""
        self._device: Path | None = None
        if sys.platform == "linux":
            self._device = Path(f"/dev/video{address}" if address.isdecimal() else address)
            _look(self._device)
            # The only way to say how long a read may take; OpenCV looks once.
            os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(math.ceil(timeout)))
        cv2 = self._cv2 = require("cv2", extra="camera")
        self._address, self._timeout = address, timeout
        # It would print warnings of its own, at every attempt.
        log_level = (
            cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel
        )
        before = log_level(0)
        try:
            self._capture: Any = (
                cv2.VideoCapture(int(address))
                if self._device is None
                else cv2.VideoCapture(str(self._device), cv2.CAP_V4L2)
            )
        finally:
            log_level(before)
        if not self._capture.isOpened():
            self.close()
            raise SourceError(
                f"camera {address} cannot be opened: it is no camera, or another program uses it "
                "(of a camera with several devices, try the next number)"
            )
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and fps > 0 else None

    def read(self) -> NDArray[np.uint8] | None:
        """Return the next picture; raises as ``Source.read``."""
        there, image = self._capture.read()
        if there and image is not None:
            rgb: NDArray[np.uint8] = self._cv2.cvtColor(image, self._cv2.COLOR_BGR2RGB)
            return rgb
        if self._device is not None and not self._device.exists():
            raise SourceError(f"camera {self._address} was unplugged")
        raise StalledError(f"camera {self._address} has delivered no picture in time")

    def close(self) -> None:
        """Let the camera go."""
        self._capture.release()


def _look(device: Path) -> None:
    """Raise what the driver would fail with, in words."""
    try:
        mode = device.stat().st_mode
    except OSError:
        there = ", ".join(sorted(str(path) for path in Path("/dev").glob("video*"))) or "none"
        raise SourceError(f"there is no camera {device}; found: {there}") from None
    if not stat.S_ISCHR(mode):
        raise SourceError(f"{device} is no camera")
    if not os.access(device, os.R_OK | os.W_OK):
        raise SourceError(
            f"{device} may not be read by this user; run: sudo usermod -aG video $USER, and log in "
            "again"
        )


def _check(address: str) -> None:
    if address.startswith("/dev/") and sys.platform != "linux":
        raise UsageError(f"{address} is a camera of Linux; here cameras have numbers, such as 0")


USB = SourceKind(
    "usb",
    "0 or /dev/video0",
    "a USB camera",
    live=True,
    matches=lambda address: _DEVICE.fullmatch(address) is not None,
    open=UsbCamera,
    check=_check,
)
