"""Measures what ``session.reload`` costs those who predict meanwhile.

``python -m lgvit_edge.benchmarks.experiments.reloading --engines one/ --other two/`` lets threads
predict without a pause while two bundles take turns. Each answer is compared with what its bundle
gives alone. Latencies are those of frames that were answered while a bundle was opened beside, and
of the others.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from lgvit_edge._support.terminal import progress_bar, say
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, run_command
from lgvit_edge.cli.options import Backend, Engines
from lgvit_edge.machine.memory import peak_memory_mb, resident_mb
from lgvit_edge.runtime import Result, Session

_BETWEEN = 3.0  # seconds without a reload, to compare with
_FRAMES = 64


def main(
    engines: Engines,
    other: Annotated[Path, typer.Option(help="Bundle that takes turns with it.")],
    policy: Annotated[str, typer.Option(help="Of both.")] = "confidence:0.8",
    threads: Annotated[int, typer.Option(min=1, help="Threads that predict.")] = 4,
    reloads: Annotated[int, typer.Option(min=1, help="Number of reloads.")] = 20,
    backend: Backend = "onnxruntime",
    json_file: JsonFile = None,
) -> None:
    """Counts failed frames and mixed answers, and tells latency and memory of reloads."""
    record = Record(json_file)
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (480, 640, 3), np.uint8) for _ in range(_FRAMES)]
    bundles = (other, engines)
    known: dict[str, list[Any]] = {}
    for root in bundles:
        with Session.open(root, backend=backend, policy=policy) as alone:
            answers = [alone.predict(frame) for frame in frames]
        known[answers[0].bundle] = [(a.exit, a.class_index) for a in answers]
    done, lock = threading.Event(), threading.Lock()
    seen: list[tuple[float, float]] = []  # when a frame was answered, and its latency
    faults: Counter[str] = Counter()
    by_bundle: Counter[str] = Counter()
    spans: list[tuple[float, float]] = []
    memory = []
    with Session.open(engines, backend=backend, policy=policy, warm_up=True) as session:

        def camera(number: int) -> None:
            index = number
            while not done.is_set():
                index = (index + threads) % _FRAMES
                try:
                    result: Result = session.predict(frames[index])
                except Exception as error:
                    faults[type(error).__name__] += 1
                    continue
                same = (result.exit, result.class_index) == known[result.bundle][index]
                with lock:
                    faults["mixed"] += not same
                    by_bundle[result.bundle] += 1
                    seen.append((time.perf_counter(), result.latency_ms))

        with ThreadPoolExecutor(threads) as pool, progress_bar("reloading") as progress:
            working = [pool.submit(camera, number) for number in range(threads)]
            for turn in range(reloads):
                done.wait(_BETWEEN)
                before = resident_mb()
                began = time.perf_counter()
                session.reload(bundles[turn % 2])
                spans.append((began, time.perf_counter()))
                memory.append((before, resident_mb()))
                progress(turn + 1, reloads)
            done.wait(_BETWEEN)
            done.set()
            for each in working:
                each.result()
    times, latency = np.array(seen).T
    beside = np.zeros(len(times), bool)
    for began, ended in spans:
        beside |= (began <= times) & (times <= ended)
    took = [ended - began for began, ended in spans]
    say(
        f"{len(seen):,} frames of {threads} threads during {reloads} reloads: "
        f"{sum(count for name, count in faults.items() if name != 'mixed')} failed, "
        f"{faults['mixed']} not as their bundle alone answers; by bundle: {dict(by_bundle)}"
    )
    shown = {}
    for name, rows in (("while a bundle is opened", beside), ("otherwise", ~beside)):
        p50, p99, most = (float(np.percentile(latency[rows], q)) for q in (50, 99, 100))
        shown[name] = {"frames": int(rows.sum()), "p50": p50, "p99": p99, "max": most}
        say(f"latency {name}: p50 {p50:.2f} ms, p99 {p99:.2f} ms, longest {most:.1f} ms")
    say(
        f"a reload took {np.median(took):.2f} s (median); memory {memory[0][0]:.0f} MB before the "
        f"first, {memory[0][1]:.0f} MB after it, {memory[-1][1]:.0f} MB after the last, at most "
        f"{peak_memory_mb():.0f} MB"
    )
    record.write(
        frames=len(seen),
        faults=dict(faults),
        by_bundle=dict(by_bundle),
        latency_ms=shown,
        reload_s=took,
        memory_mb=memory,
        peak_mb=peak_memory_mb(),
    )


if __name__ == "__main__":
    run_command(main)
