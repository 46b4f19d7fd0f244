"""Evaluates every policy on the images of a bench run, and times each segment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lgvit_edge import policies
from lgvit_edge.benchmarks.measure import Progress, random_frames
from lgvit_edge.errors import DataError
from lgvit_edge.images.labelled import LabelledImage, evenly
from lgvit_edge.images.preprocess import load_rgb
from lgvit_edge.policies.evaluate import ExitCosts, Images, evaluate, head_ms, sweep
from lgvit_edge.runtime import Session

_MOST = 5000  # images whose logits are held in memory
_FRAMES = 30  # random frames, if there are no images


def survey(
    session: Session,
    images: Sequence[LabelledImage] | None,
    record: dict[str, Any],
    *,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Runs images once through all exits, times each segment and evaluates every policy.

    Args:
        session: runs the images.
        images: those of the bench run; None for random frames, which give only times.
        record: of the bench run, for the baseline's time.
        progress: called with images done and images in all.

    Returns:
        ``segments``, each with ``ms`` and ``macs``; with labels also ``policies``, the outcomes of
        each at many settings (``Outcome.to_json``), and ``points``, those of the bundle, by name.
    """
    chosen = None if images is None else evenly(images, _MOST)
    steps = _FRAMES if chosen is None else len(chosen)
    logits, times, times_of_blocks, labels = [], [], [], []
    for done, (frame, label) in enumerate(_frames(session, chosen)):
        progress(done, steps)
        prepared = session.prepare([frame], own=False)
        if not done:
            session.timed_blocks(prepared)  # may load what runs
        if done % 2:
            times_of_blocks.append(session.timed_blocks(prepared))
        exit_logits, ms = session.timed_exits(prepared)
        times.append(ms)
        if not done % 2:
            times_of_blocks.append(session.timed_blocks(prepared))
        if label is not None:
            logits.append(exit_logits)
            labels.append(label)
    manifest = session.manifest
    mean = np.mean(times, axis=0)
    surveyed: dict[str, Any] = {
        "images": len(times),
        "segments": [
            {"index": i, "ms": float(ms), "macs": s.spec.macs, "head_macs": s.head_macs}
            for i, (ms, s) in enumerate(zip(mean, manifest.segments, strict=True))
        ],
    }
    if not labels:
        return surveyed
    surveyed_images = Images(np.stack(logits), np.array(labels))
    # Time outside the segments, such as resizing, is added for every image.
    outside_ms = record["latency_ms"]["mean"] - record["network_ms"]["mean"]
    base = record["baseline"]["latency_ms"]["mean"]
    costs = ExitCosts.of(
        manifest,
        outside_ms + np.cumsum(mean),
        base,
        heads_apart=session.heads_apart,
        head_ms=head_ms(times, times_of_blocks),
    )
    outcomes = sweep(surveyed_images, costs)
    return surveyed | {
        "policies": {name: [row.to_json() for row in rows] for name, rows in outcomes.items()},
        "points": {
            name: evaluate(policies.from_json(saved.policy), surveyed_images, costs).to_json()
            for name, saved in manifest.points.items()
        },
    }


def _frames(session: Session, images: Sequence[LabelledImage] | None) -> Any:
    if images is None:
        yield from ((frame, None) for frame in random_frames(session.manifest, _FRAMES))
        return
    for image in images:
        try:
            yield load_rgb(image.path), image.class_index
        except DataError:
            continue  # the record lists it as skipped
