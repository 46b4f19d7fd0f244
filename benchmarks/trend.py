"""Says whether something grows: a line through measurements, with its uncertainty."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> dict[str, float]:
    """Returns the least-squares slope and its 95 % interval, by bootstrap over blocks of ten.

    Blocks, because neighbours are correlated: a machine can be slow for a while. The keys are
    ``slope``, ``low`` and ``high``.
    """
    rng = np.random.default_rng(0)
    blocks = np.array_split(np.arange(len(x)), max(2, len(x) // 10))
    slopes = []
    for _ in range(2000):
        rows = np.concatenate([blocks[i] for i in rng.integers(0, len(blocks), len(blocks))])
        if np.ptp(x[rows]) > 0:
            slopes.append(np.polyfit(x[rows], y[rows], 1)[0])
    low, high = np.percentile(slopes, [2.5, 97.5])
    return {"slope": float(np.polyfit(x, y, 1)[0]), "low": float(low), "high": float(high)}
