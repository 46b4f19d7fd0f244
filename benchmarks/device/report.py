"""``device_report``: runs the steps one after the other, and packs what they wrote."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lgvit_edge import __version__
from lgvit_edge._support.files import locked
from lgvit_edge._support.outputs import replacing, write, write_json
from lgvit_edge.benchmarks.device.private import secrets, without
from lgvit_edge.benchmarks.device.steps import Job, Step, steps
from lgvit_edge.benchmarks.device.summary import summary
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.errors import BackendError, UsageError
from lgvit_edge.machine.gpu import find_gpu
from lgvit_edge.machine.tensorrt import MODULES
from lgvit_edge.runtime.backends.base import ChainOptions
from lgvit_edge.runtime.backends.registry import AUTO, backend_of, refusal
from lgvit_edge.runtime.precision import bundle_policy
from lgvit_edge.runtime.selection import choose

_STATE = "steps.json"
_TEMPORARY = "tmp"
_TICK = 1.0  # seconds
# Becomes a step that Linux ends with this process, however that ends: a step that went on alone
# would disturb those of the next call, and write over their records.
_BOUND = """\
import ctypes, os, signal, sys
libc = ctypes.CDLL(None)
if hasattr(libc, "prctl"):
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[1]):  # it has ended already
        os._exit(1)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


@dataclass(frozen=True)
class Options:
    """How a report is made.

    Attributes:
        backend: a backend's name, or ``auto``: TensorRT for a bundle for GPUs where there is one,
            else what ``Session.open`` would take.
        device: as for ``Session.open``.
        minutes: for all steps: one that is still running then is ended, and fails.
        soak_minutes: for the last step.
    """

    backend: str = AUTO
    device: str | None = None
    minutes: float = 15.0
    soak_minutes: float = 3.0


@dataclass(frozen=True)
class Outcome:
    """How a step ended: ``done``, ``failed``, or ``left out``, and why."""

    name: str
    state: Literal["done", "failed", "left out"]
    seconds: float
    why: str = ""


def device_report(
    engines: Path,
    out: Path,
    options: Options = Options(),
    *,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
    note: Callable[[str], None] = lambda text: None,
) -> list[Outcome]:
    """Measure a bundle on this device from end to end, and write everything to the archive ``out``.

    Each step runs in a process of its own, so that one that crashes or hangs ends alone. What steps
    wrote lies in the folder ``OUT.steps`` until all are through: after Ctrl-C, or a power cut, the
    same call goes on with the step that was interrupted, and tries again steps that failed.

    Raises:
        BundleError: ``engines`` is no bundle, or damaged.
        BackendError: nothing here can run it, or another report is being written there.
        UsageError: a number of minutes is not positive.
        OSError: the archive cannot be written.
    """
    for name in ("minutes", "soak_minutes"):
        if not 0 < getattr(options, name) < float("inf"):
            raise UsageError(f"{name} must be a positive number, found {getattr(options, name)}")
    bundle = open_bundle(engines)
    backend = _backend(engines, options)
    folder = out.with_name(f"{out.name}.steps")
    folder.mkdir(exist_ok=True)
    try:
        with locked(folder / ".lock"):
            job = Job(
                engines.resolve(),
                bundle.manifest,
                backend,
                options.device,
                options.soak_minutes * 60,
                folder.resolve(),
            )
            outcomes = _run(job, options, progress, note)
            hidden = secrets(BUNDLE=engines, REPORT=folder)
            _pack(job, outcomes, out, hidden)
    except BlockingIOError as holder:
        raise BackendError(f"another report ({holder}) is writing {folder}; wait for it") from None
    if all(outcome.state != "failed" for outcome in outcomes):
        shutil.rmtree(folder)
    else:
        note(f"{folder} is kept: the same command tries again what failed")
    return outcomes


def _backend(engines: Path, options: Options) -> str:
    """Return the backend that all steps run on."""
    bundle, chain = open_bundle(engines, verify=False), ChainOptions(device=options.device)
    if options.backend != AUTO:
        if (fault := refusal(backend_of(options.backend), chain)) is not None:
            raise UsageError(fault)
        return options.backend
    if (
        bundle.manifest.target != "cpu"
        and refusal(backend_of("tensorrt"), chain) is None
        and find_gpu(chain.gpu) is not None
        and any(importlib.util.find_spec(module) for module in MODULES.values())
    ):
        return "tensorrt"  # whose engines the step "build" makes
    return choose(bundle, AUTO, chain, bundle_policy(bundle.manifest)).backend


def _run(
    job: Job,
    options: Options,
    progress: Callable[[int, int, str], None],
    note: Callable[[str], None],
) -> list[Outcome]:
    every = steps(job)
    known = _earlier(job, options)
    if known:
        note(f"goes on after {', '.join(known)}, found in {job.folder}")
    outcomes: list[Outcome] = []
    begin = time.monotonic()
    for index, step in enumerate(every):
        if step.name in known:
            outcomes.append(known[step.name])
            continue
        left = options.minutes * 60 - (time.monotonic() - begin)

        def tick(index: int = index, step: Step = step) -> None:
            progress(index, len(every), f"{step.name}: {step.text}")

        tick()
        outcomes.append(_outcome(job, step, left, tick))
        if outcomes[-1].state == "failed":
            note(f"{step.name} failed: {outcomes[-1].why}")
        write_json(job.file(_STATE), _state(job, options) | {"steps": [*map(asdict, outcomes)]})
    progress(len(every), len(every), "")
    return outcomes


def _outcome(job: Job, step: Step, left: float, tick: Callable[[], None]) -> Outcome:
    record = job.file(f"{step.name}.json")
    record.unlink(missing_ok=True)
    if left < step.least:
        return Outcome(step.name, "failed", 0.0, "too little time was left")
    if step.needs and not job.file(f"{step.needs}.json").exists():
        return Outcome(step.name, "left out", 0.0, f"the step {step.needs} failed")
    arguments = step.arguments(job)
    if isinstance(arguments, str):
        return Outcome(step.name, "left out", 0.0, arguments)
    start = time.monotonic()
    limit = left if step.seconds is None else min(step.seconds, left)
    code = _run_step(job, step, arguments, start + limit, tick)
    why = f"took longer than {limit:.0f} s" if code is None else _why(job, step, code)
    seconds = round(time.monotonic() - start, 1)
    return Outcome(step.name, "failed" if why else "done", seconds, why)


def _run_step(
    job: Job, step: Step, arguments: list[str], until: float, tick: Callable[[], None]
) -> int | None:
    """Run a step, and call ``tick`` every second; return its status, None where it was too slow.

    What it leaves in the folder for temporary files, as one that is killed does, is removed.
    """
    temporary = job.file(_TEMPORARY)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    with job.file(f"{step.name}.txt").open("w", encoding="utf-8") as log:
        # Python looks for modules in the current folder first: this one holds only our files.
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _BOUND, str(os.getpid()), *arguments],
            cwd=job.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # What it said is there when it is killed, and in UTF-8; a crash tells where.
            env=os.environ
            | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", "PYTHONFAULTHANDLER": "1"}
            | {"TMPDIR": str(temporary)},
        )
        try:
            while (now := time.monotonic()) < until:
                tick()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return child.wait(min(_TICK, until - now))
            return None
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
            shutil.rmtree(temporary, ignore_errors=True)


def _why(job: Job, step: Step, code: int) -> str:
    """Return the last words of a step that failed; empty where it did not."""
    if code == 0:
        return ""
    text = job.file(f"{step.name}.txt").read_text(encoding="utf-8", errors="replace")
    said = text.partition("Fatal Python error")[0]  # where faulthandler begins
    last = said.strip().splitlines()[-1:] or ["it said nothing"]
    how = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
    return f"{last[0].removeprefix('error: ')[:300]} ({how})"


def _state(job: Job, options: Options) -> dict[str, Any]:
    """Return what must be the same for steps of an earlier call to count."""
    return {
        "version": __version__,
        "bundle": job.manifest.identity,
        "backend": job.backend,
        "device": job.device,
        "soak_minutes": options.soak_minutes,
    }


def _earlier(job: Job, options: Options) -> dict[str, Outcome]:
    """Return the steps that an interrupted call had finished, by name."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        found = json.loads(job.file(_STATE).read_text(encoding="utf-8"))
        rows = [Outcome(**row) for row in found.pop("steps")]
        if found == _state(job, options):
            return {row.name: row for row in rows if row.state == "done"}
    for file in job.folder.iterdir():
        if file.name != ".lock" and file.is_file():
            file.unlink()
    return {}


def _pack(job: Job, outcomes: list[Outcome], out: Path, hidden: dict[str, str]) -> None:
    """Write the archive, without what names a person, a machine or a place on it."""
    write(job.file("summary.md"), summary(job, [asdict(outcome) for outcome in outcomes]))
    names = ["summary.md", _STATE]
    for outcome in outcomes:
        names += [f"{outcome.name}.{kind}" for kind in ("txt", "json", "html", "png")]
    with replacing(out) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            path = job.file(name)
            if path.exists() and name.endswith("png"):
                archive.write(path, name)
            elif path.exists() and path.stat().st_size:
                archive.writestr(name, _public(path, hidden))


def _public(path: Path, hidden: dict[str, str]) -> str:
    """Return a file of the report without what is private in it."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix != ".json":
        return without(text, hidden)
    return json.dumps(_values(json.loads(text), hidden), indent=1)


def _values(value: Any, hidden: dict[str, str]) -> Any:
    """Do what ``without`` does for the texts in JSON; keys are our own."""
    if isinstance(value, dict):
        return {key: _values(item, hidden) for key, item in value.items()}
    if isinstance(value, list):
        return [_values(item, hidden) for item in value]
    return without(value, hidden) if isinstance(value, str) else value
