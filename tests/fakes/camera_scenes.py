"""Pictures and videos for tests of cameras."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def scene(number: int, width: int = 64, height: int = 48) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A picture whose grey tells its number: ``number * 10``."""
    return np.full((height, width, 3), number * 10 % 250, np.uint8)


def jpeg(width: int, height: int, number: int = 5) -> bytes:
    """A JPEG with some detail in it."""
    image = scene(number, width, height)
    image[::2, ::3, 1] = 250
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG")
    return file.getvalue()


def write_video(path: Path, *, frames: int, fps: int, codec: str = "mpeg4", **options: Any) -> None:
    """Write a video of ``scene``s with PyAV, so that no other program is needed."""
    import av

    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(scene(number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
