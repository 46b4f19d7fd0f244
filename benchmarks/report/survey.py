"""What every policy would give on the images of a bench run, and what each segment costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge import policies
from lgvit_edge.errors import DataError
from lgvit_edge.images.labelled import LabelledImage, evenly
from lgvit_edge.images.preprocess import load_rgb
from lgvit_edge.policies.evaluate import ExitCosts, Images, evaluate, sweep
from lgvit_edge.runtime import Session

Progress = Callable[[int, int], None]
_MOST = 5000  # images whose logits are held in memory
_FRAMES = 30  # random ones, without images


def survey(
    session: Session,
    images: Sequence[LabelledImage] | None,
    record: dict[str, Any],
    *,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Run images once through all exits, each segment timed.

    Args:
        session: of the run.
        images: of the run; None for random frames, of which only times are taken.
        record: of the run, for the baseline's time.
        progress: called with images done and images in all.

    Returns:
        ``segments``, each with ``ms`` and ``macs``; with labels also ``policies``, what each gives
        at many settings (``Outcome.to_json``), and ``points``, the bundle's own by name.
    """
    chosen = None if images is None else evenly(images, _MOST)
    steps = _FRAMES if chosen is None else len(chosen)
    logits, times, labels = [], [], []
    for done, (frame, label) in enumerate(_frames(session, chosen)):
        progress(done, steps)
        seen, ms = session.timed_exits(session.prepare([frame]))
        times.append(ms)
        if label is not None:
            logits.append(seen)
            labels.append(label)
    manifest = session.manifest
    mean = np.mean(times, axis=0)
    surveyed: dict[str, Any] = {
        "images": len(times),
        "segments": [
            {
                "index": index,
                "ms": float(ms),
                "macs": segment.spec.macs,
                "head_macs": segment.head_macs,
            }
            for index, (ms, segment) in enumerate(zip(mean, manifest.segments, strict=True))
        ],
    }
    if not labels:
        return surveyed
    surveyed_images = Images(np.stack(logits), np.array(labels))
    # What is not spent in the segments, such as resizing the image, each one pays.
    around = record["latency_ms"]["mean"] - record["network_ms"]["mean"]
    base = record["baseline"]["latency_ms"]["mean"]
    costs = ExitCosts.of(manifest, around + np.cumsum(mean), base)
    found = sweep(surveyed_images, costs)
    points = {
        name: evaluate(policies.from_json(saved.policy), surveyed_images, costs)
        for name, saved in manifest.points.items()
    }
    return surveyed | {
        "policies": {name: [row.to_json() for row in rows] for name, rows in found.items()},
        "points": {name: row.to_json() for name, row in points.items()},
    }


def _frames(session: Session, images: Sequence[LabelledImage] | None) -> Any:
    if images is None:
        side = session.manifest.image_size
        rng = np.random.default_rng(0)
        for _ in range(_FRAMES):
            frame: NDArray[np.uint8] = rng.integers(0, 256, (side, side, 3), np.uint8)
            yield frame, None
        return
    for image in images:
        try:
            yield load_rgb(image.path), image.class_index
        except DataError:
            continue  # the record names it already
