"""Scores of how sure a classifier is, per sample, in float32.

Entropy is computed from log-softmax, because ``p log p`` is NaN at p = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def log_softmax(logits: Floats) -> Floats:
    """Returns the log-softmax, ``[B, C] float32 -> [B, C] float32``."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))  # type: ignore[no-any-return]


def confidence(logits: Floats) -> Floats:
    """Returns the probability of the likeliest class (Eq. 16), ``[..., C] -> [...]``, in 1/C..1."""
    # The largest softmax has the numerator exp(0) = 1. This runs between two segments, with cold
    # caches. So the ufuncs are called directly, which skips the Python part of max and sum, and the
    # usual single row is handled without axes.
    if logits.ndim == 2 and len(logits) == 1:
        row = logits[0]
        total = np.add.reduce(np.exp(row - np.maximum.reduce(row)), keepdims=True)
        return np.reciprocal(total, out=total)
    shifted = logits - np.maximum.reduce(logits, axis=-1, keepdims=True)
    return 1.0 / np.add.reduce(np.exp(shifted, out=shifted), axis=-1)  # type: ignore[no-any-return]


def entropy(logits: Floats) -> Floats:
    """Returns the entropy of the predicted distribution in nats, ``[B, C] -> [B]``, in 0..log C."""
    logs = log_softmax(logits)
    return -(np.exp(logs) * logs).sum(axis=-1)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Measure:
    """Measures in one number how sure a classifier is of an image."""

    name: str  # used in records
    # Computes the number from logits, ``[B, C] float32 -> [B] float32``
    of: Callable[[Floats], Floats]
    form: str  # how the number is printed, for ``str.format``
    surest: float  # the number that none is surer than
    low_is_sure: bool = False  # whether a smaller number is surer

    def text(self, number: float) -> str:
        """Returns the number as printed, with its unit."""
        return self.form.format(number)

    def sureness(self, number: float) -> float:
        """Returns the number with its sign set so that more is surer."""
        return -number if self.low_is_sure else number


PROBABILITY = Measure("probability", confidence, "{:.1%}", surest=1.0)
ENTROPY = Measure("entropy", entropy, "{:.3f} nats", surest=0.0, low_is_sure=True)


def difference(actual: NDArray[Any], expected: NDArray[Any], *, by_token: bool = False) -> float:
    """Returns the largest difference: absolute, or relative where the expected value exceeds 1.

    ``by_token`` measures a hidden state ``[B, T, D]`` relative to the largest value of each token.
    Trained ViTs have a few channels a hundred times larger than the others, and the norm that
    follows divides by their size.
    """
    scale = np.abs(expected)
    if by_token:
        scale = scale.max(axis=-1, keepdims=True)
    gap = np.abs(actual.astype(np.float64) - expected) / np.maximum(1.0, scale)
    return float(gap.max()) if np.isfinite(gap).all() else float("inf")
