"""The steps of a device report: what each runs, in a process of its own, and for how long."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lgvit_edge._support.optional import try_import
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.errors import BackendError
from lgvit_edge.runtime.backends.base import ChainOptions
from lgvit_edge.runtime.backends.registry import backend_of

_CLI = ["-m", "lgvit_edge"]
_MEASURE = ["-m", "lgvit_edge.benchmarks.device.measure"]


@dataclass(frozen=True)
class Job:
    """What a report is of: a bundle on a backend, with the folder that steps write to."""

    engines: Path
    manifest: Manifest
    backend: str  # a name; never auto, so that all steps run the same one
    device: str | None
    soak_seconds: float
    folder: Path

    def file(self, name: str) -> Path:
        """Return the path of a file of the report."""
        return self.folder / name

    def rounds(self, seconds: float) -> int:
        """Return how many measurements of every exit and baseline take about ``seconds``."""
        chain = json.loads(self.file("parity.json").read_text(encoding="utf-8"))["chain_ms"] / 1e3
        # On average the chain stops half-way; the baseline takes about as long as all segments.
        return int(min(50, max(8, seconds / (1.5 * chain * len(self.manifest.segments)))))


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: also of its files in the report, ``NAME.txt`` and ``NAME.json``.
        text: what it does, for people.
        seconds: it is ended when it took longer; None for the time that is left.
        arguments: of Python, given the job; or why it is left out.
        needs: the step without whose record it cannot run.
        least: seconds that must be left for it to begin.
    """

    name: str
    text: str
    seconds: float | None
    arguments: Callable[[Job], list[str] | str]
    needs: str | None = None
    least: float = 5.0


def steps(job: Job) -> list[Step]:
    """Return the steps of a report, in order."""
    return [
        Step("machine", "what is installed and can run here", 60, _measure("machine")),
        Step("build", "compile engines where none run here", None, _build),
        Step("parity", "every segment at every batch size", 180, _measure("parity")),
        Step("bench", "latency, speed-up and energy", 300, _bench, needs="parity"),
        Step(
            "ways",
            "waits, CUDA graphs, copies, threads against the default",
            120,
            _ways,
            needs="parity",
        ),
        Step("profile", "times of layers", 120, _profile, needs="parity"),
        Step(
            "soak",
            "memory and latency over minutes",
            job.soak_seconds + 60,
            _measure("soak", seconds=job.soak_seconds),
            least=job.soak_seconds + 5,
        ),
    ]


def _measure(step: str, **options: Any) -> Callable[[Job], list[str] | str]:
    def arguments(job: Job) -> list[str]:
        request = {
            "step": step,
            "engines": str(job.engines),
            "backend": job.backend,
            "device": job.device,
            "json": str(job.file(f"{step}.json")),
            **options,
        }
        return [*_MEASURE, json.dumps(request)]

    return arguments


def _build(job: Job) -> list[str] | str:
    if (engines := backend_of(job.backend).engines) is None:
        return f"{job.backend} runs the bundle's graphs as they are"
    with contextlib.suppress(BackendError):  # engines that were tuned are not compiled anew
        bundle = open_bundle(job.engines, verify=False)
        return f"{engines(bundle, ChainOptions(device=job.device))} runs here"
    return [*_CLI, "build", str(job.engines), *_device(job)]


def _bench(job: Job) -> list[str] | str:
    command = [*_CLI, "bench", *_where(job), "--rounds", str(job.rounds(100))]
    command += ["--json", str(job.file("bench.json"))]
    if _has("jinja2", "matplotlib"):
        command += ["--report", str(job.file("bench.html"))]
    return command


def _ways(job: Job) -> list[str] | str:
    if not (ways := backend_of(job.backend).ways):
        return f"{job.backend} has one way"
    # Twice: the default takes its turn with each of the others.
    return _measure("ways", rounds=job.rounds(30 / len(ways)))(job)


def _profile(job: Job) -> list[str] | str:
    backend = backend_of(job.backend)
    if backend.open_profiled is None:
        return f"{job.backend} cannot tell the times of layers"
    if backend.unprofiled is not None and (why := backend.unprofiled(_runtime(job))) is not None:
        return why
    command = [*_CLI, "profile", *_where(job), "--runs", str(job.rounds(40))]
    command += ["--json", str(job.file("profile.json"))]
    if _has("matplotlib"):
        command += ["--plot", str(job.file("profile.png"))]
    return command


def _runtime(job: Job) -> dict[str, Any]:
    record = json.loads(job.file("parity.json").read_text(encoding="utf-8"))
    told: dict[str, Any] = record["runtime"]
    return told


def _has(*modules: str) -> bool:
    return all(not isinstance(try_import(name), ImportError) for name in modules)


def _where(job: Job) -> list[str]:
    return ["--engines", str(job.engines), "--backend", job.backend, *_device(job)]


def _device(job: Job) -> list[str]:
    return [] if job.device is None else ["--device", job.device]
