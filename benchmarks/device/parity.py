"""Compares every segment with PyTorch's samples, at every batch size that a bundle allows."""

from __future__ import annotations

from typing import Any

import numpy as np

from lgvit_edge.bundle.directory import Bundle
from lgvit_edge.policies.scores import difference
from lgvit_edge.runtime import Session
from lgvit_edge.runtime.backends.registry import segment_names
from lgvit_edge.runtime.runner import every_exit
from lgvit_edge.runtime.samples import read_samples


def parity(session: Session, bundle: Bundle) -> dict[str, Any]:
    """Returns the largest difference of logits from PyTorch's, by segment and batch size.

    Differences are absolute, or relative where PyTorch's logit is larger than 1. Samples are
    repeated to fill a batch. ``differences`` is ``[batch sizes, M + 2]``, the baseline last;
    ``within`` says whether all are within the bundle's ``tolerance``. ``chain_ms`` is the median of
    one image through all segments.
    """
    images, expected = read_samples(bundle)
    low, _, high = session.manifest.batch
    sizes = list(range(low, high + 1))
    differences = []
    for size in sizes:
        gaps = []
        for first in range(0, len(images), size):
            rows = np.arange(first, first + size) % len(images)
            every = every_exit(session.chain, images[rows], bundle.manifest.begins)
            found = [logits.copy() for logits in every]
            found.append(session.baseline_logits(images[rows]))
            wanted = [expected[rows, exit] for exit in (*range(expected.shape[1]), -1)]
            gaps.append([difference(a, b) for a, b in zip(found, wanted, strict=True)])
        differences.append(np.max(gaps, axis=0).tolist())  # NaN stays NaN
    chain_ms = session.warm_up()
    tolerance = session.manifest.parity.tolerance
    return {
        "graphs": [*segment_names(bundle), "baseline"],
        "batch_sizes": sizes,
        "differences": differences,
        "largest": float(np.max(differences)),
        "tolerance": tolerance,
        "within": bool(np.max(differences) <= tolerance),  # False for NaN
        "chain_ms": chain_ms,
    }
