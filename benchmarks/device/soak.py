"""Predicts for some minutes, and says whether memory or latency grow."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from lgvit_edge.benchmarks.measure import random_frames, restored_policy
from lgvit_edge.benchmarks.trend import slope
from lgvit_edge.machine.memory import resident_mb
from lgvit_edge.policies import FixedExit
from lgvit_edge.runtime import Session

_POINTS = 60  # measurements in all, at most
_FEWEST = 5
_WARM_UP = 0.2  # share of them before the fit begins, while allocators and clocks settle


def soak(
    session: Session,
    seconds: float,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Predicts without a pause for ``seconds``: single frames, a batch and a stream in turn.

    Returns the images, and for resident memory (MB) and the median latency of exit 1 (ms) every
    measurement and the slope per minute with its 95 % interval.
    """
    frames = random_frames(session.manifest, 8)
    session.warm_up()
    start = time.monotonic()
    rows: list[tuple[float, float, float]] = []
    while len(rows) < _FEWEST or time.monotonic() < start + seconds:
        progress(int(time.monotonic() - start), int(seconds))
        due = time.monotonic() + seconds / _POINTS
        while True:  # at least once
            for frame in frames:
                session.predict(frame)
            session.predict_batch(frames)
            for _ in session.stream(iter(frames)):
                pass
            if time.monotonic() >= due:
                break
        with restored_policy(session):
            session.policy = FixedExit(1)  # the same work each time
            latency = float(np.median([session.predict(frames[0]).latency_ms for _ in range(20)]))
        gc.collect()
        rows.append((time.monotonic() - start, resident_mb(), latency))
    measured = np.array(rows)
    minutes, memory, latencies = measured[int(len(rows) * _WARM_UP) :].T
    minutes = minutes / 60
    return {
        "images": session.stats.images,
        "seconds": measured[-1, 0],
        "memory_mb": slope(minutes, memory) | {"first": memory[0], "last": memory[-1]},
        "latency_ms": slope(minutes, latencies)
        | {"first_half": _median(latencies, 0), "second_half": _median(latencies, 1)},
        "raw": {"seconds, memory_mb, latency_ms": measured.round(4).tolist()},
    }


def _median(values: Any, half: int) -> float:
    return float(np.median(np.array_split(values, 2)[half]))
