"""Makes films of still pictures, as a camera that looks at each for a while would deliver them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 256  # pixels of a frame
Frame = NDArray[np.uint8]


def film(picture: Frame, frames: int, rng: np.random.Generator) -> Iterator[Frame]:
    """Yields frames of one picture, ``[SIDE, SIDE, 3] uint8``, each a little unlike the last.

    The view drifts, trembles and zooms, the light changes, the sensor is noisy. Now and then the
    camera jerks, which blurs some frames, and in half of all films something passes in front of it.
    """
    image, side = Image.fromarray(picture), min(picture.shape[:2])
    height, width = picture.shape[:2]
    zoom = 0.93 + _wave(frames, 0.07, rng)  # of the picture's shorter side
    centre = 0.5 + np.stack([_wave(frames, 0.3, rng) for _ in range(2)])  # of what there is to see
    centre = np.clip(centre + rng.normal(0, 0.03, (2, frames)), 0, 1)
    light = 1 + _wave(frames, 0.2, rng) + rng.normal(0, 0.03, frames)
    noise = rng.uniform(2, 8)  # of 255
    blur = _jerks(frames, rng)
    left, right, colour = _passer_by(frames, rng)
    for i in range(frames):
        view = zoom[i] * side
        x, y = centre[0, i] * (width - view), centre[1, i] * (height - view)
        box = (x, y, x + view, y + view)
        shown = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)
        pixels = np.asarray(shown, np.float32) * np.float32(light[i])
        if blur[i]:
            pixels = _blurred(pixels, int(blur[i]), axis=int(rng.integers(2)))
        pixels[:, left[i] : right[i]] = colour
        pixels += noise * rng.standard_normal(pixels.shape, np.float32)
        yield np.clip(pixels, 0, 255).astype(np.uint8)


def _wave(frames: int, size: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Returns a slow change between ``-size`` and ``size``, ``[frames]``."""
    turns = rng.uniform(0.5, 1.5) * np.linspace(0, 1, frames) + rng.uniform()
    return size * rng.uniform(0.3, 1) * np.sin(2 * np.pi * turns)


def _jerks(frames: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Returns how many pixels each frame is blurred over, 0 for most."""
    blur = np.zeros(frames, np.int64)
    for start in np.flatnonzero(rng.uniform(size=frames) < 0.03):
        blur[start : start + int(rng.integers(2, 5))] = rng.integers(8, 33)
    return blur


def _passer_by(
    frames: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Returns the columns of each frame that something hides, from and to, and its colour."""
    lasts, wide = int(rng.integers(5, 11)), rng.uniform(0.3, 0.7) * SIDE
    first = int(rng.integers(0, max(1, frames - lasts)))
    way = (np.arange(frames) - first) / lasts  # 0..1 while it passes
    left = np.round(way * (SIDE + wide) - wide)
    if rng.uniform() < 0.5:  # nobody comes
        left += 10 * SIDE
    right = np.clip(left + wide, 0, SIDE).astype(np.int64)
    return np.clip(left, 0, SIDE).astype(np.int64), right, rng.uniform(0, 255, 3).astype("f4")


def _blurred(pixels: NDArray[np.float32], length: int, axis: int) -> NDArray[np.float32]:
    """Returns pixels averaged over so many along an axis, as of a camera that moves."""
    sums = np.cumsum(np.take(pixels, np.arange(-length, SIDE), axis, mode="clip"), axis)
    ahead = np.take(sums, np.arange(length, SIDE + length), axis)
    return (ahead - np.take(sums, np.arange(SIDE), axis)) / np.float32(length)
