"""Images whose logits are made up, and what a run of ``tune`` would have kept of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lgvit_edge.policies.evaluate import Images
from lgvit_edge.tuning.record import DONE, Recording, record_type


def views(count: int, seed: int, noise: tuple[float, ...] = (1.6,) * 4) -> Images:
    """Every exit sees the class through noise of its own, so that several know more than one."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, count)
    seen = (
        2 * np.eye(5)[labels][:, None]
        + rng.normal(0, 1, (count, len(noise), 5)) * np.c_[list(noise)]
    )
    return Images(seen.astype(np.float32), labels)


def recorded(images: Images, sha: str = "a") -> Recording:
    rows = np.zeros(len(images), record_type(images.exits + 1, 5))
    rows["logits"], rows["label"], rows["state"] = images.logits, images.labels, DONE
    rows["prepare_ms"], rows["segment_ms"], rows["baseline_ms"] = 0.5, 1, 4
    rows["blocks_ms"] = np.nan
    return Recording(Path("kept.npy"), rows, {"images": sha * 64, "device": "a desk"})
