"""How sure a classifier is: per sample, in float32.

From log-softmax, because ``p log p`` is NaN at p = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def log_softmax(logits: Floats) -> Floats:
    """``[B, C] float32 -> [B, C] float32``."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))  # type: ignore[no-any-return]


def confidence(logits: Floats) -> Floats:
    """Probability of the most likely class (paper Eq. 16), ``[B, C] -> [B]``, in 1/C..1."""
    # exp of the largest log-softmax, whose numerator is exp(0). This runs between two segments,
    # with cold caches: the ufuncs are called directly, without the Python half of max and sum,
    # and the usual single row without axes.
    if len(logits) == 1:
        row = logits[0]
        total = np.add.reduce(np.exp(row - np.maximum.reduce(row)), keepdims=True)
        return np.reciprocal(total, out=total)
    shifted = logits - np.maximum.reduce(logits, axis=-1, keepdims=True)
    return 1.0 / np.add.reduce(np.exp(shifted, out=shifted), axis=-1)  # type: ignore[no-any-return]


def entropy(logits: Floats) -> Floats:
    """Entropy of the predicted distribution in nats, ``[B, C] -> [B]``, in 0..log C."""
    logs = log_softmax(logits)
    return -(np.exp(logs) * logs).sum(axis=-1)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Measure:
    """A way to say in one number how sure a classifier is of an image.

    Attributes:
        name: as records have it.
        of: the number from logits, ``[B, C] float32 -> [B] float32``.
        shown: how people read it, for ``str.format``.
        low_is_sure: whether a smaller number is surer.
    """

    name: str
    of: Callable[[Floats], Floats]
    shown: str
    low_is_sure: bool = False

    def text(self, number: float) -> str:
        """The number as people read it, with its unit."""
        return self.shown.format(number)

    def sureness(self, number: float) -> float:
        """The number, turned so that more is surer."""
        return -number if self.low_is_sure else number


PROBABILITY = Measure("probability", confidence, "{:.1%}")
ENTROPY = Measure("entropy", entropy, "{:.3f} nats", low_is_sure=True)


def difference(found: NDArray[Any], expected: NDArray[Any], *, by_token: bool = False) -> float:
    """Largest difference, absolute, or relative where the expected value is larger than 1.

    ``by_token`` measures a hidden state ``[B, T, D]`` against the largest value of each token:
    trained ViTs have a few channels a hundred times the others, in whose rounding the others lie,
    and the norm that follows divides by their size.
    """
    scale = np.abs(expected)
    if by_token:
        scale = scale.max(axis=-1, keepdims=True)
    gap = np.abs(found.astype(np.float64) - expected) / np.maximum(1.0, scale)
    return float(gap.max()) if np.isfinite(gap).all() else float("inf")
