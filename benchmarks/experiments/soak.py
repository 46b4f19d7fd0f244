"""Measures whether memory or latency of a session grow over many predictions.

``python -m lgvit_edge.benchmarks.experiments.soak --engines out/`` predicts on images of changing
sizes, some with deadlines, some in batches, some from a stream, some in several threads; it opens
the bundle again and forks now and then, and fits lines to memory and latency.
"""

from __future__ import annotations

import gc
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from lgvit_edge._support.terminal import console, progress_bar
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, run_command
from lgvit_edge.benchmarks.trend import slope
from lgvit_edge.cli.options import Backend, Engines
from lgvit_edge.errors import BackendError
from lgvit_edge.machine.memory import resident_mb
from lgvit_edge.runtime import FixedExit, Result, Session

_CHUNK = 1000  # images between two measurements
_WARM_UP = 0.1  # share of images before the fit begins, while allocators still grow


def main(
    engines: Engines,
    images: Annotated[int, typer.Option(min=20_000, help="Number of predictions.")] = 200_000,
    backend: Backend = "auto",
    json_file: JsonFile = None,
) -> None:
    """Predicts many times; prints growth in memory and drift in latency with 95 % intervals."""
    record = Record(json_file)
    with Session.open(engines, backend=backend, warm_up=True) as session:
        rows = run(session, engines, images)
        record.env |= {"runtime": session.describe()}
    done, memory, latency = rows[int(len(rows) * _WARM_UP) :].T
    growth, drift = slope(done / 1000, memory * 1000), slope(done / 1000, latency * 1000)
    halves = [float(np.median(half)) for half in np.array_split(latency, 2)]
    console.print(
        f"{images} images on {record.env['runtime']['backend']}: memory "
        f"{memory[0]:.1f} MB -> {memory[-1]:.1f} MB, {growth['slope']:+.3f} kB per 1000 images "
        f"(95 %: {growth['low']:+.3f} to {growth['high']:+.3f})",
        f"median latency of exit 1: {halves[0]:.3f} ms in the first half, "
        f"{halves[1]:.3f} in the second; {drift['slope']:+.3f} us per 1000 "
        f"(95 %: {drift['low']:+.3f} to {drift['high']:+.3f})",
        sep="\n",
        highlight=False,
    )
    record.write(
        memory_kb_per_1000=growth,
        latency_us_per_1000=drift,
        memory_mb=[float(memory[0]), float(memory[-1])],
        median_latency_ms=halves,
        raw={"done": done.tolist(), "memory_mb": memory.tolist(), "latency_ms": latency.tolist()},
    )


def run(session: Session, engines: Path, images: int) -> NDArray[np.float64]:
    """Returns images done, resident MB and median latency of exit 1, ``[measurements, 3]``.

    The result is allocated at the start, so that nothing here grows.
    """
    rng = np.random.default_rng(0)
    side = session.manifest.passes[0].image_size
    frames = [
        rng.integers(0, 256, (side + 8 * (i % 5), side + 16 * (i % 3), 3), np.uint8)
        for i in range(64)
    ]
    policy, backend = session.policy, session.describe()["backend"]
    seen: list[Result] = []
    session.hooks.append(lambda result: seen.append(result) if len(seen) < 8 else None)
    rows = np.zeros((images // _CHUNK, 3))
    with progress_bar("predicting") as progress:
        for row in range(len(rows)):
            for i in range(_CHUNK - 250):
                session.predict(frames[i % 64], deadline_ms=1000.0 if i % 10 == 0 else None)
            with ThreadPoolExecutor(4) as threads:
                list(threads.map(session.predict, frames[:49]))
            with Session.open(engines, backend=backend) as again:
                again.predict(frames[0])  # not counted with the session's own
            for _ in range(51):
                session.predict(frames[0])
            _fork(session, frames[0])
            session.predict_batch(frames[:50])
            for _ in session.stream(iter(frames[:50])):
                pass
            seen.clear()
            session.policy = FixedExit(1)  # the same work each time
            latency = float(np.median([session.predict(frames[0]).latency_ms for _ in range(50)]))
            session.policy = policy
            gc.collect()
            rows[row] = session.stats.images, resident_mb(), latency
            if row % 20 == 0:  # the bar stores each of its steps
                progress(row, len(rows))
    return rows


def _fork(session: Session, frame: NDArray[np.uint8]) -> None:
    """Fork; the child must be told that the session is not its own, and end."""
    child = os.fork()
    if not child:
        try:
            session.predict(frame)
        except BackendError:
            os._exit(0)
        os._exit(1)
    if os.waitpid(child, 0)[1]:
        raise BackendError("a forked process was not refused")


if __name__ == "__main__":
    run_command(main)
