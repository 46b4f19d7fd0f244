"""Measures the chain and the baseline in turn on the same images."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.benchmarks.record import Sample, instability, raw, summarise
from lgvit_edge.bundle.inspection import pass_records
from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.bundle.plain_models import better
from lgvit_edge.errors import DataError, UsageError
from lgvit_edge.images.labelled import LabelledImage, content_hash
from lgvit_edge.images.preprocess import load_rgb
from lgvit_edge.machine.clocks import clock_state, throttling
from lgvit_edge.machine.environment import device_of, environment
from lgvit_edge.machine.memory import peak_memory_mb
from lgvit_edge.policies import FixedExit, Policy
from lgvit_edge.policies.evaluate import ExitCosts
from lgvit_edge.runtime import Result, Session

Progress = Callable[[int, int], None]
Watch = Callable[[LabelledImage, Result], None]
_WARM_UP = 10
_BLOCK = 8  # frames run in a row through the chain, then through the baseline
Frame = NDArray[np.uint8]


def measure_images(
    session: Session,
    images: Sequence[LabelledImage],
    *,
    progress: Progress = lambda done, total: None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Measures the session's policy on real images; returns figures and raw timings as JSON.

    Files that cannot be decoded are skipped and listed under ``skipped``.

    Args:
        session: its policy is measured.
        images: with or without a class.
        progress: called with images done and images in all.
        watch: called with each image and its result, between measurements.

    Raises:
        DataError: no image could be decoded.
    """
    samples: list[Sample] = []
    skipped: list[str] = []
    images_sha256 = content_hash(image.path for image in images)
    start, clocks = environment(), clock_state(gpu=gpu_of(session))
    for first in range(0, len(images), _BLOCK):
        progress(first, len(images))
        block, decoded = [], []
        for image in images[first : first + _BLOCK]:
            try:
                block.append((load_rgb(image.path), image.class_index))
                decoded.append(image)
            except DataError:
                skipped.append(str(image.path))
        if block and not samples:
            _warm_up(session, block[0][0])
        measured, results = _measure(session, block, chain_first=first // _BLOCK % 2 == 0)
        samples += measured
        for image, result in zip(decoded, results, strict=True):
            if watch is not None:
                watch(image, result)
    if not samples:
        raise DataError(f"none of {len(images)} images could be decoded, such as {skipped[0]}")
    return _record(session, samples, start, clocks, session.policy) | {
        "policy": session.policy.to_json(),
        "point": session.point,
        "skipped": skipped,
        "images_sha256": images_sha256,
    }


def measure_exits(
    session: Session,
    *,
    rounds: int = 30,
    mix: Sequence[float] | None = None,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Measures every exit in turn on random frames; returns the same figures without accuracy.

    Args:
        session: its policy is restored at the end.
        rounds: measurements of each exit.
        mix: share of the images at each exit, 1..M + 1, in any unit; uniform by default. The
            record holds the shares assumed, too.
        progress: called with steps done and steps in all.

    Raises:
        UsageError: the mix has another number of exits, or is negative or all zero.
    """
    exits = len(session.manifest.segments)
    shares = np.ones(exits) if mix is None else np.asarray(mix, np.float64)
    bad = not np.isfinite(shares).all() or (shares < 0).any() or shares.sum() <= 0
    if len(shares) != exits or bad:
        raise UsageError(f"expected {exits} shares of 0 or more, one per exit, found {mix}")
    shares = shares / shares.sum()
    frames = [(frame, None) for frame in random_frames(session.manifest, _BLOCK)]
    start, clocks = environment(), clock_state(gpu=gpu_of(session))
    samples: list[Sample] = []
    with restored_policy(session):
        _warm_up(session, frames[0][0])
        for first in range(0, rounds, _BLOCK):
            for exit in range(1, exits + 1):
                progress(first * exits + exit, rounds * exits)
                session.policy = FixedExit(exit)
                block = frames[: min(_BLOCK, rounds - first)]
                samples += _measure(session, block, chain_first=first // _BLOCK % 2 == 0)[0]
    forced = FixedExit(exits)
    return _record(session, samples, start, clocks, forced, shares) | {"mix": shares.tolist()}


def gpu_of(session: Session) -> int | None:
    """Returns CUDA's number of the NVIDIA GPU that the session runs on, None for another device."""
    gpu: int | None = session.describe().get("gpu")
    return gpu


def random_frames(manifest: Manifest, count: int) -> list[Frame]:
    """Returns seeded random frames in the size of the last pass, ``[side, side, 3] uint8``."""
    rng, side = np.random.default_rng(0), manifest.passes[-1].image_size
    return [rng.integers(0, 256, (side, side, 3), np.uint8) for _ in range(count)]


def _measure(
    session: Session, block: Sequence[tuple[Frame, int | None]], *, chain_first: bool
) -> tuple[list[Sample], list[Result]]:
    """Run the chain on a few frames, then the baseline on the same, or the other way round.

    They take turns so that both see the same drift of the machine. A turn has several frames, so
    that the other's weights do not push one's own out of the caches before every frame.
    """
    frames = [frame for frame, _ in block]
    if chain_first:
        results = [session.predict(frame) for frame in frames]
        bases = [run_baseline(session, frame) for frame in frames]
    else:
        bases = [run_baseline(session, frame) for frame in frames]
        results = [session.predict(frame) for frame in frames]
    samples = [
        Sample(
            exit=result.exit,
            correct=None if label is None else result.class_index == label,
            baseline_correct=None if label is None else guess == label,
            latency_ms=result.latency_ms,
            network_ms=result.network_ms,
            baseline_ms=total,
            baseline_network_ms=network,
        )
        for (_, label), result, (guess, total, network) in zip(block, results, bases, strict=True)
    ]
    return samples, results


def run_baseline(session: Session, frame: Frame) -> tuple[int, float, float]:
    """Returns the baseline's class, and the milliseconds from frame to class and of the network."""
    logits, total, network = session.timed_baseline(frame)
    return int(logits.argmax()), total, network


def _warm_up(session: Session, frame: Frame) -> None:
    """Run every segment and the baseline until buffers, caches and clocks have settled."""
    with restored_policy(session):
        session.policy = FixedExit(len(session.manifest.segments))
        for _ in range(_WARM_UP):
            session.predict(frame)
            run_baseline(session, frame)


@contextlib.contextmanager
def restored_policy(session: Session) -> Iterator[None]:
    """Restores the policy, or the operating point, at the end; until then none is noted."""
    policy, point, notes = session.policy, session.point, session.notes
    session.notes = False
    try:
        yield
    finally:
        if point is None:
            session.policy = policy
        else:
            session.point = point
        session.notes = notes


def _record(
    session: Session,
    samples: list[Sample],
    start: dict[str, Any],
    clocks: dict[str, Any],
    policy: Policy,
    shares: NDArray[np.float64] | None = None,
) -> dict[str, Any]:
    costs = ExitCosts.of(session.manifest, heads_apart=session.heads_apart).under(policy)
    figures = summarise(samples, session.manifest, costs, shares)
    unstable = instability(samples, start["running"], start["cores"])
    after = clock_state(gpu=gpu_of(session))
    if held := throttling(clocks, after):
        unstable.append(f"throttled ({', '.join(held)}); let the machine cool down, and run again")
    return {
        "env": start | {"runtime": session.describe(), "peak_memory_mb": peak_memory_mb()},
        "clocks": {"before": clocks, "after": after},
        "bundle": described(session.manifest),
        **figures,
        "unstable": unstable,
        "plain_models": _better(session, figures),
        "command": command_line(),
        "raw": raw(samples),
    }


def _better(session: Session, figures: dict[str, Any]) -> list[str]:
    """Return what people should know of plain models that the bundle was compared with."""
    if figures["accuracy"] is None:
        return []
    return better(
        session.manifest.plain_models,
        change=figures["accuracy"] - figures["baseline_accuracy"],
        time_share=1 / figures["speedup"]["wall_clock"],
        device=device_of(session.describe()),
    )


def described(manifest: Manifest) -> dict[str, Any]:
    """Returns what a record says of the bundle."""
    return {
        "passes": pass_records(manifest),  # the baseline is the last one's network
        "image_size": manifest.passes[-1].image_size,
        "classes": manifest.num_classes,
        "precision": manifest.precision,
        "target": manifest.target,
        "opset": manifest.opset,
        "input": manifest.input,
        "batch": list(manifest.batch),
        "identity": manifest.identity,
    }


def command_line() -> str:
    """Returns the command that repeats this run."""
    module = sys.modules["__main__"].__spec__  # None for an installed script
    if module is None:
        return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return shlex.join(["python", "-m", module.name.removesuffix(".__main__"), *sys.argv[1:]])
