"""What an image looks like, in numbers that need no network: size, sharpness, brightness."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Looks(NamedTuple):
    """Numbers of one image."""

    pixels: float  # of the file, width times height
    sharpness: float  # variance of the Laplacian of grey levels; blur makes it small
    brightness: float  # mean grey level, 0..255


def looks_of(height: int, width: int, crop: NDArray[np.uint8]) -> Looks:
    """Returns the numbers of an image of this size, ``crop`` being what the network sees of it.

    ``crop`` is ``[S, S, 3] uint8``. A small file that was enlarged for it has little sharpness.
    """
    grey = crop.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    inner = grey[1:-1, 1:-1]
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    laplacian = around - 4 * inner
    sharpness = float(laplacian.var()) if laplacian.size else 0.0
    return Looks(float(height * width), sharpness, float(grey.mean()))
