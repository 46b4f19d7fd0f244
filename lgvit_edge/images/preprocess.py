"""From an image file or a camera frame to the network's input, as the manifest says."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.errors import DataError
from lgvit_edge.images.spec import Preprocess

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_MAX_PIXELS = 100_000_000  # a decoded bomb would take gigabytes


def list_images(folder: Path) -> list[Path]:
    """Images directly in ``folder`` by their suffix, sorted by name.

    Raises:
        DataError: ``folder`` cannot be read.
    """
    try:
        return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror}") from None


def load_rgb(path: str | Path) -> NDArray[np.uint8]:
    """Decode an image file to ``[H, W, 3] uint8`` RGB, turned upright.

    Raises:
        DataError: no such file, not an image, or damaged.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise DataError(f"{path}: {image.width} x {image.height} pixels are too many")
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):  # Pillow would cut off at 255 instead of scaling
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            return np.asarray(upright.convert("RGB"))
    except FileNotFoundError:
        raise DataError(f"no such image: {path}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is not an image that can be decoded: {error}") from None


def check_frame(frame: Any) -> NDArray[np.uint8]:
    """``frame`` itself when it is ``[H, W, 3] uint8``.

    Raises:
        DataError: it is not.
    """
    if (
        not isinstance(frame, np.ndarray)
        or frame.dtype != np.uint8
        or frame.ndim != 3
        or frame.shape[2] != 3
        or 0 in frame.shape
    ):
        found = (
            f"{frame.dtype} {list(frame.shape)}"
            if isinstance(frame, np.ndarray)
            else type(frame).__name__
        )
        raise DataError(f"a frame must be uint8 RGB [H, W, 3], found {found}")
    return frame


def resize_crop(frame: NDArray[np.uint8], spec: Preprocess, size: int) -> NDArray[np.uint8]:
    """Resize the short side, or with ``spec.squash`` both, to ``spec.resize``; cut out the centre.

    Only what survives the crop is computed: the crop's box is mapped back into the frame and that
    box is resized straight to ``size``. Nearly all pixels are within one grey level of
    resize-then-crop; bicubic overshoot at saturated edges is cut off once instead of twice.

    Args:
        frame: ``[H, W, 3] uint8``.
        spec: side, shape and interpolation.
        size: side of the crop, in pixels.

    Returns:
        ``[size, size, 3] uint8``; ``frame`` itself when it already is what is asked for.
    """
    height, width = frame.shape[:2]
    if (height, width) == (size, size) == (spec.resize, spec.resize):
        return frame
    from PIL import Image

    short = min(height, width)
    # Both sides become whole pixels, as in torchvision and timm.
    out_h, out_w = spec.resize * height // short, spec.resize * width // short
    if spec.squash:
        out_h = out_w = spec.resize
    top, left = round((out_h - size) / 2), round((out_w - size) / 2)
    box = (
        left * width / out_w,
        top * height / out_h,
        (left + size) * width / out_w,
        (top + size) * height / out_h,
    )
    image = Image.fromarray(np.ascontiguousarray(frame))
    resampling = Image.Resampling[spec.interpolation.upper()]
    return np.asarray(image.resize((size, size), resampling, box=box))


def network_input(
    frames: Sequence[NDArray[np.uint8]], spec: Preprocess, size: int, dtype: str
) -> NDArray[Any]:
    """Frames of any sizes to what segment 0 takes.

    Args:
        frames: each ``[H, W, 3] uint8`` RGB.
        spec: resize, crop, mean and std.
        size: side of the network's input.
        dtype: ``uint8`` or ``float32``, as the bundle says.

    Returns:
        ``[B, size, size, 3] uint8``, or normalised ``[B, 3, size, size] float32``.

    Raises:
        DataError: a frame is of another type or shape.
    """
    resized = [resize_crop(check_frame(frame), spec, size) for frame in frames]
    images = resized[0][None] if len(resized) == 1 else np.stack(resized)
    return images if dtype == "uint8" else to_float(images, spec)


def to_float(images: NDArray[np.uint8], spec: Preprocess) -> NDArray[np.float32]:
    """Normalised network input for ``--input float32``.

    Args:
        images: ``[B, H, W, 3] uint8``.
        spec: mean and std.

    Returns:
        ``[B, 3, H, W] float32``.
    """
    scale, shift = _scale_shift(spec)
    scaled = images.astype(np.float32) * scale + shift
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


@lru_cache(maxsize=8)
def _scale_shift(spec: Preprocess) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    mean, std = np.array(spec.mean, np.float64), np.array(spec.std, np.float64)
    return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)
