"""The weights with which Pillow resizes, so that other code can give the same pixels.

Pillow resizes along one axis, rounds to 8 bits, and resizes along the other. Each pixel is a
weighted sum of its neighbours. Weights are integers, in units of 1 / 2**22
(src/libImaging/Resample.c; for ``nearest``, ImagingScaleAffine in Geometry.c).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.errors import DataError
from lgvit_edge.images.preprocess import crop_box
from lgvit_edge.images.spec import Preprocess

_ONE = 1 << 22
_Array = NDArray[np.float64]
# Pillow calls the C library's, from which NumPy's own may differ in the last bit.
_sin, _cos = (np.vectorize(f, otypes=[np.float64]) for f in (math.sin, math.cos))
_SUPPORT = {"box": 0.5, "bilinear": 1.0, "hamming": 1.0, "bicubic": 2.0, "lanczos": 3.0}


class Weights(NamedTuple):
    """Tells how Pillow computes a crop of ``size`` from an image.

    Attributes:
        columns: ``[2 + most, size] int32``, for each column of the crop: the first column of the
            image that it is computed from, how many columns those are (at most ``most``), and
            their weights, then zeros. Weights add up to 2**22, to rounding.
        rows: the same for each row.
        rows_first: whether rows are summed first, and then columns.
    """

    columns: NDArray[np.int32]
    rows: NDArray[np.int32]
    rows_first: bool


def resize_weights(height: int, width: int, spec: Preprocess, size: int) -> Weights:
    """Return the weights with which ``resize_crop`` computes its pixels.

    Raises:
        DataError: this version of Pillow resizes in another way.
    """
    left, top, right, bottom = crop_box(height, width, spec, size)
    return Weights(
        _axis(width, left, right, size, spec.interpolation),
        _axis(height, top, bottom, size, spec.interpolation),
        _rows_first()(height, width, size),
    )


def weighted(frame: NDArray[np.uint8], weights: Weights) -> NDArray[np.uint8]:
    """Resize ``[H, W, 3] uint8`` by weights, slowly; returns ``[size, size, 3] uint8``."""
    if weights.rows_first:
        return _along(_along(frame, weights.rows, 0), weights.columns, 1)
    return _along(_along(frame, weights.columns, 1), weights.rows, 0)


def _along(frame: NDArray[np.uint8], weights: NDArray[np.int32], axis: int) -> NDArray[np.uint8]:
    pixels = np.moveaxis(frame, axis, 0).astype(np.int64)
    lines = [
        np.tensordot(weights[2 : 2 + count, place], pixels[first : first + count], 1)
        for place, (first, count) in enumerate(weights[:2].T)
    ]
    sums = (np.stack(lines) + _ONE // 2) >> 22
    return np.moveaxis(sums.clip(0, 255).astype(np.uint8), 0, axis)


# Whether the rows come first, given height, width and size. Pillow's source has three rules: of
# 10.3 to 12.1, of 12.2 and 12.3, and of 13.0. Its release notes do not mention them.
_RULES: tuple[Callable[[int, int, int], bool], ...] = (
    lambda height, width, size: False,
    lambda height, width, size: height > 100 * width and height > size,
    lambda height, width, size: 0 < height - size > 2 * (width - size),
)
# Heights and widths about where the rules differ, for a size of 8.
_TRIED = ((32, 20), (33, 20), (200, 2), (201, 2), (9, 64))


@lru_cache
def _rows_first() -> Callable[[int, int, int], bool]:
    """Return the rule of the Pillow installed here, found by resizing a few images.

    Raises:
        DataError: it has none of the rules, or other weights.
    """
    import PIL

    orders = {tried: _orders(*tried) for tried in _TRIED}
    for rule in _RULES:
        if all(rule(*tried, 8) in found for tried, found in orders.items()):
            return rule
    raise DataError(
        f"Pillow {PIL.__version__} resizes in a way that is not known here, so an image on the GPU "
        "would not become what the same image in a file becomes: copy it to the host, or run: "
        "pip install 'Pillow==13.0.0'"
    )


def _orders(height: int, width: int) -> list[bool]:
    """Return the values of ``rows_first`` that give Pillow's pixels for random images."""
    from PIL import Image

    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    found = [True, False]
    for kind in ("bicubic", "bilinear"):
        resized = Image.fromarray(frame).resize((8, 8), Image.Resampling[kind.upper()])
        columns, rows = (_axis(side, 0, side, 8, kind) for side in (width, height))
        found = [
            order
            for order in found
            if np.array_equal(weighted(frame, Weights(columns, rows, order)), np.asarray(resized))
        ]
    return found


def _axis(length: int, start: float, end: float, size: int, kind: str) -> NDArray[np.int32]:
    # Pillow keeps the box in single precision, and all that follows in double.
    low, high = np.float32(start), np.float32(end)
    scale, begin = float(high - low) / size, float(low)
    if kind == "nearest":
        # Pillow steps from pixel to pixel, and so its rounding errors add up.
        places = np.cumsum([begin + scale * 0.5, *[scale] * (size - 1)]).astype(np.int64)
        inside = places < length  # outside the result is black
        return np.stack([places * inside, inside, inside * _ONE]).astype(np.int32)
    stretch = max(scale, 1.0)
    reach = _SUPPORT[kind] * stretch
    centers = begin + (np.arange(size) + 0.5) * scale
    first = np.maximum((centers - reach + 0.5).astype(np.int64), 0)
    counts = np.minimum((centers + reach + 0.5).astype(np.int64), length) - first
    steps = np.arange(counts.max())[:, None]
    weights = _FILTERS[kind]((steps + first - centers + 0.5) * (1.0 / stretch))
    weights[steps >= counts] = 0
    total = np.cumsum(weights, axis=0)[-1]  # in Pillow's order: another one rounds otherwise
    weights /= np.where(total == 0, 1, total)
    whole = np.trunc(weights * _ONE + np.where(weights < 0, -0.5, 0.5))
    return np.concatenate([first[None], counts[None], whole]).astype(np.int32)


def _box(x: _Array) -> _Array:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


def _bilinear(x: _Array) -> _Array:
    x = 1 - np.abs(x)
    return np.where(x > 0, x, 0)


def _hamming(x: _Array) -> _Array:
    x = np.abs(x)
    angle = np.where(x == 0, 1, x) * math.pi
    # These two constants are of single precision in Pillow.
    window = float(np.float32(0.54)) + float(np.float32(0.46)) * _cos(angle)
    return np.where(x == 0, 1, np.where(x < 1, _sin(angle) / angle * window, 0))


def _bicubic(x: _Array) -> _Array:
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _sinc(x: _Array) -> _Array:
    angle = np.where(x == 0, 1, x) * math.pi
    return np.where(x == 0, 1, _sin(angle) / angle)


def _lanczos(x: _Array) -> _Array:
    return np.where((x >= -3) & (x < 3), _sinc(x) * _sinc(x / 3), 0)


_FILTERS = {
    "box": _box,
    "bilinear": _bilinear,
    "hamming": _hamming,
    "bicubic": _bicubic,
    "lanczos": _lanczos,
}
