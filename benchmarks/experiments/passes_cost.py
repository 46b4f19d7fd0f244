"""Measures what one bundle of passes costs against a session of its own for each network.

``python -m lgvit_edge.benchmarks.experiments.passes_cost --engines out/ --shares 60,40`` takes a
bundle whose passes have no exits inside, so that segment i is the whole network of pass i + 1.
Frames are answered in each pass in turn: by the chain, and by networks opened one by one, which
resize the frame as often. Memory and opening times are those of new processes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from lgvit_edge._support.terminal import progress_bar, say
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, run_command
from lgvit_edge.bundle.directory import Bundle, open_bundle
from lgvit_edge.cli.options import Engines, parse_numbers
from lgvit_edge.errors import UsageError
from lgvit_edge.images.inputs import Inputs
from lgvit_edge.machine.memory import peak_memory_mb
from lgvit_edge.policies import FixedExit
from lgvit_edge.runtime import ChainOptions, Session
from lgvit_edge.runtime.backends.base import Chain
from lgvit_edge.runtime.backends.registry import chain_opener, segment_names

FRAME = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
_WARM_UP = 5


def main(
    engines: Engines,
    shares: Annotated[str, typer.Option(help="Images that each pass answers, in any unit.")],
    backend: Annotated[str, typer.Option(help="Backend of both sides.")] = "onnxruntime",
    rounds: Annotated[int, typer.Option(min=2, help="Measurements of each pass.")] = 20,
    runs: Annotated[int, typer.Option(min=1, help="Processes that open each side.")] = 3,
    json_file: JsonFile = None,
) -> None:
    """Times frames answered in each pass: by the chain, and by separate networks."""
    record, bundle = Record(json_file), open_bundle(engines)
    parts = np.array(parse_numbers(shares), np.float64)
    count = len(bundle.manifest.passes)
    if count < 2 or len(segment_names(bundle)) != count:
        raise UsageError(
            f"expected a bundle of several passes without exits inside, found {count} with "
            f"{len(segment_names(bundle))} segments; run: lgvit-edge export ... --exits none"
        )
    if len(parts) != count or parts.min() < 0 or parts.sum() <= 0:
        raise UsageError(f"expected {count} shares, one for each pass, found {shares}")
    opened = {
        name: [_in_new_process(name, engines, backend) for _ in range(runs)]
        for name in ("chain", "apart")
    }
    with progress_bar("in turn") as progress:
        times = measure(bundle, backend, rounds, progress)
    median = {name: np.median(ms, axis=1) for name, ms in times.items()}
    weights = parts / parts.sum()
    chain, apart = (float(weights @ median[name]) for name in ("chain", "apart"))
    for number, (ours, theirs) in enumerate(zip(median["chain"], median["apart"], strict=True), 1):
        title = bundle.manifest.pass_title(number)
        say(f"answered in {title}: chain {ours:.2f} ms, apart {theirs:.2f} ms")
    say(f"in the shares {shares}: chain {chain:.2f} ms, apart {apart:.2f} ms, {chain / apart:.3f}x")
    for name, rows in opened.items():
        seconds, peak = np.median([(row["seconds"], row["peak_mb"]) for row in rows], axis=0)
        say(f"{name}: opened and run once in {seconds:.2f} s, peak memory {peak:.0f} MB")
    raw = {name: np.round(ms, 4).tolist() for name, ms in times.items()}
    record.write(shares=weights.tolist(), overhead=chain / apart, opened=opened, raw_ms=raw)


def measure(
    bundle: Bundle, backend: str, rounds: int, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Returns the milliseconds from frame to class of each side, ``[passes, rounds]``, in turn."""
    count = len(bundle.manifest.passes)
    chains = _apart(bundle, backend)
    times = {name: np.empty((count, rounds)) for name in ("chain", "apart")}
    with Session.open(bundle.root, backend=backend, device="cpu") as session:
        sides: dict[str, Callable[[int], object]] = {
            "chain": lambda number: session.predict(FRAME).class_index,
            "apart": lambda number: _through(chains[:number], bundle),
        }
        for done in range(-_WARM_UP, rounds):
            progress(max(done, 0), rounds)
            for number in range(1, count + 1):
                session.policy = FixedExit(number)
                for name in list(sides)[:: 1 if done % 2 else -1]:
                    start = time.perf_counter()
                    sides[name](number)
                    if done >= 0:
                        times[name][number - 1, done] = (time.perf_counter() - start) * 1e3
    for chain in chains:
        chain.close()
    return times


def _apart(bundle: Bundle, backend: str) -> list[Chain]:
    """Open each pass's network by itself; the last is the baseline."""
    make = chain_opener(bundle, backend, ChainOptions(device="cpu"))
    return [make([name]) for name in (*segment_names(bundle)[:-1], "baseline")]


def _through(chains: list[Chain], bundle: Bundle) -> int:
    """Run a frame through networks that know nothing of each other; return the last one's class."""
    answer = 0
    for chain, view in zip(chains, bundle.manifest.views, strict=False):
        chain.start(Inputs.prepare([FRAME], (view,)).of(0))
        answer = int(chain.step()[0].argmax())
    return answer


def _in_new_process(side: str, engines: Path, backend: str) -> dict[str, float]:
    command = [sys.executable, "-m", __spec__.name, "--open", side, str(engines), backend]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told: dict[str, float] = json.loads(done.stdout)
    return told


def _open(side: str, engines: str, backend: str) -> None:
    """Open one side, run it once, and print how long that took, and its memory."""
    start = time.perf_counter()
    if side == "chain":
        session = Session.open(engines, backend=backend, policy="never", device="cpu")
        session.predict(FRAME)
    else:
        bundle = open_bundle(engines)
        _through(_apart(bundle, backend), bundle)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": round(seconds, 3), "peak_mb": peak_memory_mb()}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--open"]:
        _open(*sys.argv[2:])
    else:
        run_command(main)
