"""Runs every image once through all exits and times each segment."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.errors import DataError
from lgvit_edge.images.labelled import LabelledImage, content_hash
from lgvit_edge.images.preprocess import load_rgb
from lgvit_edge.machine.environment import device_of
from lgvit_edge.runtime import Session
from lgvit_edge.tuning.record import DONE, NO_CLASS, UNREADABLE, Recording, recording

Progress = Callable[[int, int], None]
_WARM_UP = 10
_BLOCK = 8  # images run in a row through the chain, then through the baseline
_BASELINE_IMAGES = 400  # enough for a mean; timing all would double the run


def collect(
    session: Session,
    images: Sequence[LabelledImage],
    path: Path,
    *,
    decisions_only: bool = False,
    anew: bool = False,
    progress: Progress = lambda done, total: None,
) -> Recording:
    """Runs the images that are not in the file of logits yet, and returns the whole file.

    Args:
        session: runs the images; its policy is ignored.
        images: labelled images; each needs a class.
        path: the file of logits; created if missing.
        decisions_only: for comparing decisions: images need no class, and no baseline is run.
        anew: whether what another run left in the file is replaced.
        progress: called with images done and images in all.

    Raises:
        DataError: the file is of another run, and not to be replaced; an image has no class, or
            none can be read.
    """
    labels = [NO_CLASS if (c := image.class_index) is None else c for image in images]
    if NO_CLASS in labels and not decisions_only:
        raise DataError(
            "images without classes tell nothing about accuracy: expected one sub-folder per "
            "class, or a label file with lines FILE CLASS"
        )
    images_sha256 = content_hash(image.path for image in images)
    device = device_of(session.describe())
    with recording(path, session.manifest, labels, images_sha256, device, anew=anew) as stored:
        rows, todo = stored.rows, stored.missing
        every = max(1, len(images) // _BASELINE_IMAGES)
        ways = [_chain, *([_blocks] if session.heads_apart else []), _baseline]
        groups = 0
        for first in range(0, len(todo), _BLOCK):
            progress(len(images) - len(todo) + first, len(images))
            frames = []
            for row in todo[first : first + _BLOCK]:
                try:
                    frames.append((row, load_rgb(images[row].path)))
                except DataError:
                    rows["state"][row] = UNREADABLE
            if not frames:
                continue
            if not groups:
                for _ in range(0 if decisions_only else _WARM_UP):
                    for way in ways:
                        way(session, frames[0][1])
            turn, rest = divmod(groups, every)
            for way in (_chain,) if rest or decisions_only else ways[:: 1 if turn % 2 else -1]:
                for row, frame in frames:
                    for name, value in way(session, frame).items():
                        rows[name][row] = value
            rows["state"][[row for row, _ in frames]] = DONE
            groups += 1
        if not len(stored.usable):
            raise DataError(
                f"none of {len(images)} images could be decoded, such as {images[0].path}"
            )
        return stored


def _chain(session: Session, frame: NDArray[np.uint8]) -> dict[str, Any]:
    start = time.perf_counter()
    images = session.prepare([frame], own=False)
    prepared = time.perf_counter()
    logits, segments = session.timed_exits(images)
    prepare_ms = (prepared - start) * 1e3
    return {"logits": logits, "prepare_ms": prepare_ms, "segment_ms": segments}


def _blocks(session: Session, frame: NDArray[np.uint8]) -> dict[str, Any]:
    return {"blocks_ms": session.timed_blocks(session.prepare([frame], own=False))}


def _baseline(session: Session, frame: NDArray[np.uint8]) -> dict[str, Any]:
    return {"baseline_ms": session.timed_baseline(frame)[1]}
