"""What every backend provides: a chain of segments that keeps the hidden state where it is."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Chain(Protocol):
    """Segments run one after the other on one batch.

    The host sees logits only. Arrays returned by ``step`` are the chain's own buffers: read them
    before the next ``start``.
    """

    @property
    def max_batch(self) -> int:
        """Largest batch ``start`` takes."""

    def start(self, images: NDArray[Any]) -> None:
        """Begin with network inputs ``[B, ...]``, B <= ``max_batch``."""

    def step(self) -> NDArray[np.float32]:
        """Run the next segment and return its logits ``[B, C]``."""

    def keep(self, rows: NDArray[np.intp]) -> None:
        """Drop all rows but these (ascending) before the next step."""

    def describe(self) -> dict[str, Any]:
        """Backend, version, device and threads, for records."""

    def close(self) -> None:
        """Free what the backend holds."""
