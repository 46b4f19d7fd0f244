"""Tries a bundle in a process with limits: of a crash, or of a full memory, this one hears only.

The limits are no sandbox: what runs in that process has the rights of the user.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lgvit_edge._support.finite_json import loads
from lgvit_edge._support.numbers import real, whole
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.errors import (
    BackendError,
    BundleError,
    LGViTEdgeError,
    MissingDependency,
    ParityError,
    UsageError,
    in_one_line,
)
from lgvit_edge.machine.cpu import available_cores
from lgvit_edge.machine.memory import memory_bytes
from lgvit_edge.runtime.backends.registry import backend_of
from lgvit_edge.runtime.selection import python_running, python_starts_python

SECONDS = 120.0
_MOST_SECONDS, _MOST_MB = 1_000_000, 2**30
_BASE_MB, _TIMES = 2048, 4  # memory by default: 2 GB, and the bundle's files this many times
_THREADS = 4  # at most: each takes memory
_OUTPUT = 2**26  # bytes that the process may write to one file
_MODULES = {"onnxruntime": "onnxruntime", "openvino": "openvino"}
# What libraries say when they get no memory; the last two, for a thread and for a library.
_FULL = re.compile(
    "bad_alloc|bad allocation|MemoryError|out of memory|(unable|failed) to allocate|"
    "cannot allocate|could not allocate|resource temporarily unavailable|failed to map segment",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Verification:
    """Holds what became of a bundle that was run in a process with limits.

    Attributes:
        bundle: its path.
        backend: what ran it.
        outcome: ``good``; ``refused`` before it ran; ``differs`` from PyTorch; ``crash``, ``time``,
            ``memory``; or ``failed`` in another way.
        message: what went wrong, and what to do; empty if it is good.
        max_difference: of logits from PyTorch's, as ``Session.check_parity`` gives it.
        tolerance: of that difference.
        seconds: that it took.
        peak_mb: the most memory the process held; None if it did not say.
        memory_mb: the limit.
        time_limit: in seconds.
    """

    bundle: str
    backend: str
    outcome: str
    message: str
    max_difference: float | None
    tolerance: float
    seconds: float
    peak_mb: int | None
    memory_mb: int
    time_limit: float

    def check(self) -> None:
        """Raise what is wrong with the bundle.

        Raises:
            BundleError: it was refused.
            ParityError: it differs from PyTorch.
            BackendError: it crashed, failed, took too long or too much memory.
        """
        kinds = {"refused": BundleError, "differs": ParityError}
        if self.outcome != "good":
            raise kinds.get(self.outcome, BackendError)(self.message)


def verify(
    path: str | Path,
    *,
    backend: str = "onnxruntime",
    memory_mb: int | None = None,
    seconds: float = SECONDS,
) -> Verification:
    """Open a bundle and run its samples on the CPU, in a process with limits.

    Example:
        verify("out/").check()

    Args:
        path: the bundle's folder.
        backend: ``onnxruntime`` or ``openvino``.
        memory_mb: memory that it may take; None for 2 GB and four times the bundle, at most three
            quarters of all memory.
        seconds: until it is ended.

    Raises:
        BundleError: there is no bundle, or its manifest is damaged.
        UsageError: a limit is no positive number, or the backend has no limits.
        MissingDependency: the backend is not installed.
        BackendError: this program is not a Python that can start another.
    """
    if backend not in _MODULES:
        raise UsageError(
            f"--backend: expected {' or '.join(_MODULES)}, found {backend!r}; TensorRT engines are "
            "programs, which no limit makes safe: compile them yourself with: lgvit-edge build"
        )
    if not python_starts_python():
        raise BackendError(
            f"{sys.executable} is no Python that could run the bundle in a process of its own; "
            "run: lgvit-edge verify"
        )
    kind = backend_of(backend)
    if not kind.installed:
        raise MissingDependency(f"{backend} is not installed; {kind.to_install}")
    seconds = real(seconds)
    if not 0 < seconds <= _MOST_SECONDS:
        raise UsageError(
            f"--seconds: expected a number above 0, at most {_MOST_SECONDS}, found {seconds:g}"
        )
    bundle = open_bundle(path, verify=False)
    if memory_mb is None:
        size = sum(spec.bytes for spec in bundle.manifest.files()) >> 20
        memory_mb = min(_BASE_MB + _TIMES * size, memory_bytes() * 3 // 4 >> 20)
    memory_mb = whole("memory_mb", memory_mb)
    if memory_mb > _MOST_MB:
        raise UsageError(f"--memory-mb: expected at most {_MOST_MB}, found {memory_mb}")
    began = time.perf_counter()
    record = _run(str(bundle.root.absolute()), backend, memory_mb, seconds)
    return Verification(
        bundle=str(path),
        backend=backend,
        outcome=record["outcome"],
        message=record.get("message", ""),
        max_difference=record.get("max_difference"),
        tolerance=bundle.manifest.parity.tolerance,
        seconds=round(time.perf_counter() - began, 2),
        peak_mb=record.get("peak_mb"),
        memory_mb=memory_mb,
        time_limit=seconds,
    )


def _run(root: str, backend: str, memory_mb: int, seconds: float) -> dict[str, Any]:
    threads = min(_THREADS, available_cores())
    cpu = _processor_seconds(seconds, threads)
    request = {"root": root, "backend": backend, "threads": threads}
    request |= {"memory": memory_mb << 20, "seconds": cpu}
    command = python_running(__name__, json.dumps(request))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    # Files, because a pipe would bring all that is written into this process.
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as warned:
        try:
            status = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=warned,
                timeout=seconds,
            ).returncode
        except subprocess.TimeoutExpired:
            return _outcome("time", root, f"took longer than {seconds:g} s; allow more: --seconds")
        answer, warning = _last_line(said), _last_line(warned)
    if status < 0:
        name = signal.Signals(-status).name
        if name == "SIGXCPU":
            return _outcome("time", root, f"computed for {cpu} s; allow more: --seconds")
        if name == "SIGKILL" or _FULL.search(warning):
            return _outcome("memory", root, _too_much(memory_mb, f"{name} {warning}"))
        return _outcome("crash", root, f"crashed {backend} ({name}); do not run it")
    try:
        record = loads(answer)
        return _judged(record, root, memory_mb)
    except (ValueError, KeyError, TypeError, RecursionError):
        if _FULL.search(warning):
            return _outcome("memory", root, _too_much(memory_mb, warning))
        return _outcome("crash", root, f"ended the process with {status}: {warning}; do not run it")


def _processor_seconds(seconds: float, threads: int) -> int:
    """Return the limit that ends the process if this one, which watches it, was killed."""
    return int(seconds * threads) + 5


def _judged(record: dict[str, Any], root: str, memory_mb: int) -> dict[str, Any]:
    """Return the outcome that the process reports."""
    kind, message = record["error"], str(record["message"])
    if kind is None:
        numbers = {"max_difference": float(record["max_difference"])}
        return {"outcome": "good", "peak_mb": int(record["peak_mb"])} | numbers
    # What is refused before it runs is told with names out of the bundle, such as "out of memory".
    if not record["opened"]:
        return {"outcome": "refused", "message": message}
    if _FULL.search(f"{kind} {message}"):
        return _outcome("memory", root, _too_much(memory_mb, message))
    names = {"BundleError": "refused", "UsageError": "refused", "ParityError": "differs"}
    if kind in names:  # the message says all
        return {"outcome": names[kind], "message": message}
    return _outcome("failed", root, f"failed: {message}")


def _too_much(memory_mb: int, message: str) -> str:
    why = f" ({message.strip()[:200]})" if message.strip() else ""
    return f"needed more than {memory_mb} MB of memory{why}; allow more: --memory-mb"


def _outcome(outcome: str, root: str, message: str) -> dict[str, Any]:
    return {"outcome": outcome, "message": f"{root} {message}"}


def _last_line(file: Any) -> str:
    """Return the last line that was written, or the end of it."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 65536))
    lines = file.read().decode("utf-8", "replace").strip().splitlines()
    return " ".join(lines[-1].split()) if lines else ""


def _main() -> None:
    """Run the bundle in the process that ``_run`` started, and print what came of it."""
    import resource

    request = json.loads(sys.argv[1])
    record: dict[str, Any] = {"error": None, "message": "", "opened": True}
    try:
        from lgvit_edge._support.optional import require
        from lgvit_edge.runtime.session import open_in_float32

        # Libraries are trusted, and reserve much: the limit is on what the bundle takes.
        require(_MODULES[request["backend"]], extra="cpu")
        _limit(request["memory"], request["seconds"])
        try:
            open_bundle(request["root"])
        except BundleError:
            record["opened"] = False
            raise
        with open_in_float32(
            request["root"], backend=request["backend"], threads=request["threads"], device="cpu"
        ) as session:
            record["max_difference"] = session.check_parity()
        record["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    except LGViTEdgeError as error:
        record |= {"error": type(error).__name__, "message": str(error)}
    except Exception as error:  # libraries raise what they like
        record |= {"error": "", "message": in_one_line(error)}
    print(f"\n{json.dumps(record)}", flush=True)
    os._exit(0)  # what a library does at its end is no matter of the bundle


def _limit(memory: int, seconds: int) -> None:
    import resource

    # Not the address space: OpenVINO maps the file of weights for each graph, and needs no memory.
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    limits = {
        resource.RLIMIT_DATA: pages * resource.getpagesize() + memory,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: _OUTPUT,
        resource.RLIMIT_CORE: 0,
    }
    for kind, wanted in limits.items():
        hard = resource.getrlimit(kind)[1]
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (most, hard))
