"""Films made of real images, for experiments with the camera application."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.optional import require
from lgvit_edge.images.preprocess import load_rgb


def load_pictures(data: Path, count: int, width: int, height: int) -> list[NDArray[np.uint8]]:
    """Returns images of a folder, spread evenly, each cut to ``[height, width, 3] uint8`` RGB."""
    from PIL import Image, ImageOps

    files = sorted(data.rglob("*.[jJ][pP]*[gG]"))
    step = max(1, len(files) // count)
    return [
        np.asarray(ImageOps.fit(Image.fromarray(load_rgb(file)), (width, height)))
        for file in files[::step][:count]
    ]


def write_film(
    pictures: Sequence[NDArray[np.uint8]], path: Path, fps: int, *, repeat: int = 1
) -> None:
    """Writes a film in which each picture is shown for ``repeat`` frames (MPEG-4, good quality)."""
    av = require("av", extra="camera")
    with av.open(str(path), "w") as film:
        stream = film.add_stream("mpeg4", rate=fps)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 8_000_000
        for picture in pictures:
            for _ in range(repeat):
                film.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        film.mux(stream.encode())
