"""Running the chain and the baseline in turn on the same images."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.benchmarks.environment import environment, peak_memory_mb
from lgvit_edge.benchmarks.record import Sample, instability, summarise
from lgvit_edge.errors import DataError, UsageError
from lgvit_edge.labelled import LabelledImage
from lgvit_edge.policy import FixedExit
from lgvit_edge.preprocess import load_rgb
from lgvit_edge.runtime import Session

Progress = Callable[[int, int], None]
_WARM_UP = 10
Frame = NDArray[np.uint8]


def measure_images(
    session: Session,
    images: Sequence[LabelledImage],
    *,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Bench the session's policy on real images.

    Files that cannot be decoded are left out and listed under ``skipped``.

    Returns:
        The record of DESIGN section 8, as JSON.

    Raises:
        DataError: no image could be decoded.
    """
    samples: list[Sample] = []
    skipped: list[str] = []
    start = environment()
    for done, image in enumerate(images):
        progress(done, len(images))
        try:
            frame = load_rgb(image.path)
        except DataError:
            skipped.append(str(image.path))
            continue
        if not samples:
            _warm_up(session, frame)
        samples.append(_measure(session, frame, image.class_index, chain_first=done % 2 == 0))
    if not samples:
        raise DataError(f"none of {len(images)} images could be decoded, such as {skipped[0]}")
    record = _record(session, samples, start)
    return record | {"skipped": skipped, "policy": session.policy.to_json()}


def measure_exits(
    session: Session,
    *,
    rounds: int = 30,
    mix: Sequence[float] | None = None,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Without images: every exit forced in turn, on seeded random frames.

    Args:
        session: its policy is put back at the end.
        rounds: measurements of each exit.
        mix: share of the images at each exit, 1..M + 1, in any unit; uniform by default.
        progress: called with steps done and steps in all.

    Returns:
        The record of DESIGN section 8, without accuracy; its ``mix`` says what was assumed.

    Raises:
        UsageError: the mix has another number of exits, or is negative or empty.
    """
    exits = len(session.manifest.segments)
    shares = np.ones(exits) if mix is None else np.asarray(mix, np.float64)
    if len(shares) != exits or (shares < 0).any() or shares.sum() <= 0:
        raise UsageError(f"expected {exits} shares of 0 or more, one per exit, found {mix}")
    shares = shares / shares.sum()
    side = session.manifest.image_size
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (side, side, 3), np.uint8) for _ in range(8)]
    start, policy = environment(), session.policy
    by_exit: dict[int, list[Sample]] = {exit: [] for exit in range(1, exits + 1)}
    try:
        _warm_up(session, frames[0])
        for done in range(rounds * exits):
            progress(done, rounds * exits)
            exit = done % exits + 1
            session.policy = FixedExit(exit)
            frame = frames[done % len(frames)]
            order = done // exits % 2 == 0
            by_exit[exit].append(_measure(session, frame, None, chain_first=order))
    finally:
        session.policy = policy
    everything = [sample for samples in by_exit.values() for sample in samples]
    record = _record(session, everything, start, mixed=_mixed(by_exit, shares))
    return record | {"mix": shares.tolist()}


def _mixed(by_exit: dict[int, list[Sample]], shares: NDArray[np.float64]) -> list[Sample]:
    """The samples repeated so that each exit has its share, in thousandths."""
    mixed = []
    for samples, share in zip(by_exit.values(), shares, strict=True):
        count = round(1000 * share)
        mixed += [samples[i * len(samples) // count] for i in range(count)]
    return mixed


def _measure(session: Session, frame: Frame, label: int | None, *, chain_first: bool) -> Sample:
    if chain_first:
        result = session.predict(frame)
        base = _baseline(session, frame)
    else:
        base = _baseline(session, frame)
        result = session.predict(frame)
    guess, total, network = base
    return Sample(
        exit=result.exit,
        correct=None if label is None else result.class_index == label,
        baseline_correct=None if label is None else guess == label,
        latency_ms=result.latency_ms,
        network_ms=result.network_ms,
        baseline_ms=total,
        baseline_network_ms=network,
    )


def _baseline(session: Session, frame: Frame) -> tuple[int, float, float]:
    start = time.perf_counter()
    images = session.prepare([frame])
    began = time.perf_counter()
    guess = int(session.baseline_logits(images)[0].argmax())
    end = time.perf_counter()
    return guess, (end - start) * 1e3, (end - began) * 1e3


def _warm_up(session: Session, frame: Frame) -> None:
    """Touch every segment and the baseline until buffers, caches and clocks have settled."""
    policy = session.policy
    session.policy = FixedExit(len(session.manifest.segments))
    for _ in range(_WARM_UP):
        session.predict(frame)
        _baseline(session, frame)
    session.policy = policy


def _record(
    session: Session,
    samples: list[Sample],
    start: dict[str, Any],
    *,
    mixed: list[Sample] | None = None,
) -> dict[str, Any]:
    manifest = session.manifest
    summary = summarise(mixed or samples, manifest) | {"samples": len(samples)}
    if mixed:
        counts = {e: sum(s.exit == e for s in samples) for e in {s.exit for s in samples}}
        for row in summary["exits"]:
            row["count"] = counts[row["index"]]
    return {
        "env": start | {"runtime": session.describe(), "peak_memory_mb": peak_memory_mb()},
        "bundle": {
            "family": manifest.family,
            "image_size": manifest.image_size,
            "classes": manifest.num_classes,
            "blocks": manifest.num_blocks,
            "precision": manifest.precision,
            "target": manifest.target,
            "weights_sha256": manifest.weights[0].sha256,
        },
        **summary,
        "unstable": instability(samples, start["load_average"], start["cores"]),
        "command": command_line(),
    }


def command_line() -> str:
    """What was typed, without the path of the interpreter's scripts."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def evenly(images: Sequence[LabelledImage], count: int | None) -> Sequence[LabelledImage]:
    """``count`` images spread evenly over the list, so that every class has its share."""
    if count is None or count >= len(images):
        return images
    return [images[i * len(images) // count] for i in range(count)]
