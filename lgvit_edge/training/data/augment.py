"""Random changes of training images; the generator passed in decides each."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.images.spec import Preprocess

_RATIO = (3 / 4, 4 / 3)  # width to height of a crop
_ATTEMPTS = 10


def random_crop_box(
    height: int, width: int, rng: np.random.Generator, *, min_share: float
) -> tuple[float, float, float, float]:
    """Returns left, top, right and bottom of a random part of an image.

    Its area is uniform in ``min_share``..1 of the image's, its aspect ratio log-uniform in
    3/4..4/3: the usual random resized crop.
    """
    for _ in range(_ATTEMPTS):
        area = height * width * rng.uniform(min_share, 1.0)
        ratio = math.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return float(x), float(y), float(x + w), float(y + h)
    # A panorama may hold no crop of such a shape: take the largest in its middle.
    ratio = min(max(width / height, _RATIO[0]), _RATIO[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h


def random_resized_crop(
    frame: NDArray[np.uint8],
    spec: Preprocess,
    size: int,
    rng: np.random.Generator,
    *,
    min_share: float,
    flip: bool,
) -> NDArray[np.uint8]:
    """Returns a random part of ``frame``, resized and, every other time, mirrored.

    Args:
        frame: ``[H, W, 3] uint8``.
        spec: gives the interpolation.
        size: side of the result, in pixels.
        rng: decides the crop and whether to mirror.
        min_share: smallest share of the image's area in a crop.
        flip: whether to mirror at all.

    Returns:
        ``[size, size, 3] uint8``.
    """
    from PIL import Image

    box = random_crop_box(frame.shape[0], frame.shape[1], rng, min_share=min_share)
    resampling = Image.Resampling[spec.interpolation.upper()]
    image = Image.fromarray(np.ascontiguousarray(frame)).resize((size, size), resampling, box=box)
    result = np.asarray(image)
    return result[:, ::-1] if flip and rng.random() < 0.5 else result


def random_shift(
    frame: NDArray[np.uint8], rng: np.random.Generator, *, pixels: int
) -> NDArray[np.uint8]:
    """Returns ``frame [H, W, 3] uint8`` moved by up to ``pixels`` each way; borders are black."""
    top, left = pixels - rng.integers(-pixels, pixels + 1, size=2)
    padded = np.pad(frame, ((pixels, pixels), (pixels, pixels), (0, 0)))
    return padded[top : top + frame.shape[0], left : left + frame.shape[1]]
