"""Checks a backend's logits against PyTorch's, on the samples stored in the bundle."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.bundle.directory import Bundle
from lgvit_edge.errors import ParityError
from lgvit_edge.policies.scores import difference
from lgvit_edge.runtime.backends.base import Chain


def check_parity(bundle: Bundle, chain: Chain, baseline: Chain | None) -> float:
    """Compare logits of every exit with PyTorch's, one by one and in the largest batches.

    Args:
        bundle: brings the samples, ``parity.npz``.
        chain: of its segments.
        baseline: checked too, if it is given.

    Returns:
        The largest difference from PyTorch's logits, absolute, or relative where one is larger
        than 1.

    Raises:
        ParityError: beyond the tolerance the bundle was exported with; names the segment.
    """
    parity = bundle.manifest.parity
    with np.load(bundle.path(parity.samples), allow_pickle=False) as samples:
        images, expected = samples["images"], samples["logits"]
    gaps = [0.0]

    def check(who: str, running: Chain, wanted: NDArray[np.float32]) -> None:
        gaps.append(difference(running.step(), wanted))
        if gaps[-1] > parity.tolerance:
            raise ParityError(
                f"{who} diverges from PyTorch on this device: max |difference| "
                f"{gaps[-1]:.3g}, tolerance {parity.tolerance:g}; do not run it here"
            )

    for size in sorted({1, chain.max_batch}):
        for first in range(0, len(images), size):
            rows = slice(first, first + size)
            chain.start(images[rows])
            for index in range(len(bundle.manifest.segments)):
                check(f"segment {index}", chain, expected[rows, index])
            if baseline is not None:
                baseline.start(images[rows])
                check("the baseline", baseline, expected[rows, -1])
    return max(gaps)
