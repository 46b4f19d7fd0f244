"""Turns what FFmpeg decodes, through PyAV, into RGB pictures that stand upright."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.optional import require
from lgvit_edge.errors import DataError

# What FFmpeg's decoders call the coefficients of a frame, and its converter: BT.709, SMPTE 240M,
# BT.2020 in two variants. All others, and those that are not told, are BT.601's.
_COEFFICIENTS = {1: 1, 7: 7, 9: 9, 10: 9}
_BT601 = 5


class ToRgb:
    """Converts frames of PyAV to ``[H, W, 3] uint8``; keeps its tables between frames."""

    def __init__(self) -> None:
        self._reformat = require("av.video.reformatter", extra="camera").VideoReformatter().reformat

    def __call__(self, frame: Any) -> NDArray[np.uint8]:
        """Convert a frame; the array is the caller's."""
        # Of RGB the second one means nothing, but PyAV 13 heeds the first only beside another.
        image = self._reformat(
            frame,
            format="rgb24",
            src_colorspace=_COEFFICIENTS.get(int(frame.colorspace), _BT601),
            dst_colorspace=_BT601,
        ).to_ndarray()
        for data in frame.side_data:
            if data.type.name == "DISPLAYMATRIX":  # telephones record how they were held
                image = _upright(image, np.frombuffer(data, np.int32).reshape(3, 3))
        array: NDArray[np.uint8] = np.ascontiguousarray(image)
        return array


def _upright(image: NDArray[np.uint8], matrix: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Turn and mirror by quarters: x, y times the matrix is where a pixel is to be shown."""
    (right, down), (right_of_y, down_of_y) = matrix[:2, :2]
    if abs(right) < abs(down):
        image, right, down_of_y = image.transpose(1, 0, 2), right_of_y, down
    return image[:: -1 if down_of_y < 0 else 1, :: -1 if right < 0 else 1]


class Jpegs:
    """Decodes JPEGs; half a picture is none."""

    def __init__(self) -> None:
        self._av = require("av", extra="camera")
        self._to_rgb = ToRgb()
        self._codec = self._av.CodecContext.create("mjpeg", "r")
        self._codec.thread_count = 1  # more hold frames back
        self._codec.options = {"err_detect": "+explode"}

    def __call__(self, data: bytes | bytearray) -> NDArray[np.uint8]:
        """Decode one JPEG.

        Raises:
            DataError: it is damaged.
        """
        try:
            frames = self._codec.decode(self._av.Packet(bytes(data)))
        except self._av.FFmpegError as error:
            raise DataError(f"a JPEG cannot be decoded: {error.strerror}") from None
        if not frames:
            raise DataError("a JPEG holds no picture")
        return self._to_rgb(frames[0])
