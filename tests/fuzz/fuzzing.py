"""Lets lgvit-edge read changed files by the thousand, in processes that may die.

``python tests/fuzz/fuzzing.py --minutes 10`` (or ``make fuzz MINUTES=10``) divides the time among
all targets. What is found is written to ``build/fuzz``; mend it, and keep the file in
``tests/fuzz/seeds/TARGET``, which the tests try for ever.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import multiprocessing
import os
import random
import resource
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if __name__ in ("__main__", "__mp_main__"):
    for folder in (HERE, HERE.parent / "fakes", HERE.parent / "model" / "checkpoints"):
        sys.path.insert(0, str(folder))

from targets import TARGETS, Target, make  # noqa: E402 - found by the lines above

from lgvit_edge.errors import LGViTEdgeError  # noqa: E402
from lgvit_edge.machine.environment import environment  # noqa: E402

SEEDS = HERE / "seeds"
SLOW = 5.0  # seconds for one content
MEMORY = 1 << 30  # bytes for one content
_STARTS = 180.0  # seconds to import torch on a busy machine
_KEPT = 3  # contents of each finding


@dataclass(frozen=True)
class Finding:
    """What must not happen: a crash, a hang, too much memory, or an error that is none of ours."""

    target: str
    kind: str  # ``crash``, ``hang``, ``memory`` or the error's name
    details: str
    content: bytes = field(repr=False)


@dataclass
class Outcome:
    """What came of one target."""

    target: str
    tried: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    memory_mb: float = 0.0  # the most that one content took
    findings: list[Finding] = field(default_factory=list)
    out: Path | None = None  # where findings are kept as they come

    def add(self, finding: Finding) -> None:
        self.findings.append(finding)
        if self.out is not None:
            print(f"    {finding.kind}: {keep(finding, self.out)}", flush=True)


@dataclass(frozen=True)
class _Job:
    """What a worker tries: contents that are given, or changes number ``first`` and on."""

    target: Target
    root: Path
    seed: int
    first: int
    count: int
    until: float  # on the monotonic clock
    given: Sequence[bytes] | None
    log: Path

    def content(self, number: int, bases: Sequence[bytes]) -> bytes:
        if self.given is not None:
            return self.given[number]
        rng = random.Random(f"{self.target.name} {self.seed} {number}")
        return self.target.change(rng, rng.choice(bases))


def run(
    target: Target,
    root: Path,
    *,
    count: int = 1 << 62,
    seconds: float = 1e9,
    seed: int = 0,
    given: Sequence[bytes] | None = None,
    slow: float = SLOW,
    out: Path | None = None,
) -> Outcome:
    """Try changes of a target's files, or given contents; ``root`` is what ``make`` filled."""
    outcome = Outcome(target.name, out=out)
    until = time.monotonic() + seconds
    count = count if given is None else len(given)
    spawn = multiprocessing.get_context("spawn")
    first = 0
    while first < count and time.monotonic() < until:
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            job = _Job(target, root, seed, first, count, until, given, log)
            number = spawn.Value("q", -1)
            ours, theirs = spawn.Pipe(duplex=False)
            worker = spawn.Process(target=_work, args=(job, number, theirs), daemon=True)
            worker.start()
            theirs.close()
            hung = _watch(worker, number, ours, outcome, slow)
            outcome.tried += max(0, number.value + 1 - first)
            if worker.exitcode == 0:
                break
            if number.value < 0:
                raise RuntimeError(f"{target.name} does not start:\n{_tail(log)}")
            content = job.content(number.value, target.bases(root))
            kind = "hang" if hung else "crash"
            outcome.add(Finding(target.name, kind, _tail(log), content))
            first = number.value + 1
    return outcome


def _watch(worker: Any, number: Any, pipe: Connection, outcome: Outcome, slow: float) -> bool:
    """Wait for a worker; end it, and return true, where one content takes too long."""
    last, since = number.value, time.monotonic()
    while worker.is_alive() or pipe.poll():
        with contextlib.suppress(EOFError):
            while pipe.poll(0.05):
                _note(outcome, *pipe.recv())
        if not worker.is_alive():
            break
        if number.value != last:
            last, since = number.value, time.monotonic()
        elif time.monotonic() - since > (_STARTS if last < 0 else slow):
            os.kill(worker.pid, signal.SIGABRT)  # writes where it is
            worker.join(2)
            worker.kill()
            worker.join()
            with contextlib.suppress(EOFError):
                while pipe.poll():
                    _note(outcome, *pipe.recv())
            return True
    worker.join()
    return False


def _note(outcome: Outcome, what: str, value: Any) -> None:
    if what == "finding":
        outcome.add(value)
    else:
        refused, slowest, memory = value
        outcome.refused += refused
        outcome.slowest_s = max(outcome.slowest_s, slowest)
        outcome.memory_mb = max(outcome.memory_mb, memory)


def _work(job: _Job, number: Any, pipe: Connection) -> None:
    """Try contents until the time or the count is up; runs in a process of its own."""
    os.environ |= {"OMP_NUM_THREADS": "1", "LGVIT_EDGE_BACKEND": "onnxruntime"}
    folder = job.log.parent  # removed by the other process, however this one ends
    with job.log.open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)  # libraries talk much
        faulthandler.enable(log)
        os.environ["LGVIT_EDGE_CACHE"] = str(folder / "cache")
        bases = job.target.bases(job.root)
        work = folder / "work"
        work.mkdir()
        attempt = job.target.reader(job.root, work)
        for base in bases:
            attempt(base)  # what is true is read; it also imports what it needs
        _bound(MEMORY if job.target.cheap else 4 * MEMORY)
        seen: dict[str, int] = {}
        refused, slowest, memory = 0, 0.0, 0.0
        every = 1000 if job.target.cheap else 10
        for i in range(job.first, job.count):
            if time.monotonic() > job.until:
                break
            content = job.content(i, bases)
            number.value = i
            before = 0 if job.target.cheap else _lowered_peak()
            began = time.perf_counter()
            finding = None
            try:
                attempt(content)
            except LGViTEdgeError as error:
                refused += 1
                if len(str(error)) > 5000:
                    finding = "long message", str(error)[:200]
            except BaseException as error:
                finding = type(error).__name__, _described(error)
            slowest = max(slowest, time.perf_counter() - began)
            if not job.target.cheap:
                grown = _peak() - before
                memory = max(memory, grown / 1e6)
                if grown > MEMORY and finding is None:
                    finding = "memory", f"{grown / 1e6:.0f} MB more"
            if finding is not None:
                place = f"{finding[0]} {finding[1].splitlines()[0]}"
                seen[place] = seen.get(place, 0) + 1
                if seen[place] <= _KEPT:
                    pipe.send(("finding", Finding(job.target.name, *finding, content)))
            if i % every == 0:
                pipe.send(("figures", (refused, slowest, memory)))
                refused = 0
        pipe.send(("figures", (refused, slowest, memory)))
        pipe.close()
        os._exit(0)  # what a library does at the end is not asked


def _described(error: BaseException) -> str:
    """Where the error was raised in the project, what it says, and how it came there."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if ".venv" not in frame.filename] or frames
    where = f"{own[-1].filename}:{own[-1].lineno}"
    return f"{where}\n{str(error)[:500]}\n{''.join(traceback.format_list(frames[-12:]))}"


def _bound(more: int) -> None:
    """Keep a mistake from taking the machine's memory, and from writing core files."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * os.sysconf("SC_PAGE_SIZE") + more
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _lowered_peak() -> int:
    """Set the peak of resident memory back to what is resident, and return that in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell the peak of resident memory")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:] if log.exists() else ""


def keep(finding: Finding, out: Path) -> Path:
    """Write a finding's content and what is known of it; returns the content's path."""
    folder = out / finding.target
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{finding.kind.replace(' ', '-')}-{random.Random(finding.content).getrandbits(40):010x}"
    (folder / stem).write_bytes(finding.content)
    (folder / f"{stem}.txt").write_text(finding.details)
    return folder / stem


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="time for all targets")
    parser.add_argument(
        "--cheap", type=int, help="number of contents for all cheap targets, instead of a time"
    )
    parser.add_argument(
        "--full", type=int, help="number of contents for all other targets, instead of a time"
    )
    parser.add_argument("--target", action="append", help="only these targets", metavar="NAME")
    parser.add_argument("--seed", type=int, help="default: another one each time")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="targets at a time")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="for what is found")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else time.time_ns() % 10**9
    known = {target.name: target for target in TARGETS}
    if unknown := set(given.target or ()) - known.keys():
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(known)}")
    chosen = [known[name] for name in given.target or known]
    print(f"seed {seed}, {len(chosen)} targets", flush=True)
    limits: dict[str, dict[str, Any]] = {}
    for kind, total in ((True, given.cheap), (False, given.full)):
        alike = [target for target in chosen if target.cheap == kind]
        for target in alike:
            share = 60 * given.minutes * min(given.jobs, len(chosen)) / len(chosen)
            limits[target.name] = {"seconds": share}
            if total is not None:
                limits[target.name] = {"count": -(-total // len(alike))}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make(root)
        with ThreadPoolExecutor(given.jobs) as pool:
            running = [
                pool.submit(run, target, root, seed=seed, out=given.out, **limits[target.name])
                for target in chosen
            ]
            outcomes = []
            for future in running:
                outcome = future.result()
                outcomes.append(outcome)
                print(
                    f"{outcome.target:26} {outcome.tried:9} tried, {outcome.refused:9} refused, "
                    f"slowest {outcome.slowest_s:5.2f} s, at most {outcome.memory_mb:5.0f} MB, "
                    f"{len(outcome.findings)} findings",
                    flush=True,
                )
    if given.json is not None:
        rows = [
            {k: v for k, v in vars(o).items() if k != "out"} | {"findings": len(o.findings)}
            for o in outcomes
        ]
        command = shlex.join(["python", "tests/fuzz/fuzzing.py", *sys.argv[1:]])
        found = {"env": environment(), "seed": seed, "targets": rows, "command": command}
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(any(outcome.findings for outcome in outcomes))


if __name__ == "__main__":
    main()
