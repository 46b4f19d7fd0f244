"""Compiles one engine in a process of its own, whose memory does not stay for the next engine.

The system may kill that process when memory runs out, and this one lives to say so. The two talk
through a pipe: a job goes there, and progress and the result, or an error, come back. When this
process ends in any way, the other does too.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from lgvit_edge._support.files import read_bytes
from lgvit_edge._support.outputs import leftovers, write
from lgvit_edge.errors import BuildError, LGViTEdgeError, in_one_line
from lgvit_edge.export.tensorrt.builder import BuilderOptions, BuildTask, EngineBuilder
from lgvit_edge.machine.tensorrt import TensorRT
from lgvit_edge.runtime.selection import python_running, python_starts_python

_MAX_CACHE = 1 << 28
_HEARTBEAT = 1.0  # seconds
_FIRST_TO_END = "500"  # of -1000..1000: the system ends this process before its parent


@dataclass(frozen=True)
class Job:
    """One engine to compile: with what, from what, and where it is written."""

    library: str
    options: BuilderOptions
    task: BuildTask
    engine: Path
    timing_cache: Path  # is read, and written anew
    gpu: int = 0


@dataclass(frozen=True)
class Compiled:
    """The engine that was written."""

    sha256: str
    bytes: int
    seconds: float
    findings: tuple[str, ...]  # what we warn of
    warnings: tuple[str, ...]  # what TensorRT warns of


def compile_engine(job: Job, progress: Callable[[str], None]) -> Compiled:
    """Compile one engine in another process, or in this one where it cannot start Python.

    ``progress`` is called with the name of TensorRT's present phase, empty before the first, and
    again every second, because TensorRT may be silent for minutes: in this process it is then not.

    Raises:
        BuildError: the graph is refused, the engine is not what was asked for, or the process was
            killed.
        BackendError: TensorRT does not start.
        OSError: the engine cannot be written.
    """
    if not python_starts_python():
        return _compile(job, progress)
    ours, theirs = Pipe()
    with ours:
        with theirs:
            command = python_running(__name__, str(theirs.fileno()))
            # In a session of its own, so that Ctrl-C reaches this process alone, which ends it.
            try:
                process = subprocess.Popen(
                    command,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                )
            except OSError as error:
                raise BuildError(
                    f"cannot start {sys.executable} to compile in: {error.strerror or error}; "
                    "close other programs"
                ) from None
        try:
            answer = _answer(ours, job, progress)
        except EOFError:
            raise BuildError(_death(job, process.wait())) from None
        finally:
            process.kill()
            process.wait()
            for path in (job.engine, job.timing_cache):
                for left in path.parent.glob(leftovers(path.name)):
                    left.unlink(missing_ok=True)
    if isinstance(answer, Exception):
        raise answer
    return answer


def _answer(pipe: Connection, job: Job, progress: Callable[[str], None]) -> Compiled | Exception:
    """Give the other process its job, and return how it ended; ``EOFError`` where it died."""
    try:
        pipe.send(job)
    except OSError:
        raise EOFError from None
    phase = ""
    while True:
        try:
            said: str | Compiled | Exception = pipe.recv() if pipe.poll(_HEARTBEAT) else phase
        except OSError:
            raise EOFError from None
        if not isinstance(said, str):
            return said
        phase = said
        progress(phase)


def _death(job: Job, status: int) -> str:
    what = f"{job.task.onnx.name}: the process that compiled it "
    again = "; the same command then goes on with this engine"
    if -status == signal.SIGKILL:
        return (
            f"{what}was killed, as the system does when memory runs out; close other programs, add "
            f"swap space, or let TensorRT use less: --workspace-mb 256 or --opt-level 1{again}"
        )
    how = signal.Signals(-status).name if status < 0 else f"status {status}"
    return f"{what}crashed ({how}); run: lgvit-edge doctor{again}"


def _compile(job: Job, progress: Callable[[str], None]) -> Compiled:
    trt, cache = TensorRT(job.library), b""
    with contextlib.suppress(OSError):
        cache = read_bytes(job.timing_cache, _MAX_CACHE)
    builder = EngineBuilder(trt, job.options, timing_cache=cache, gpu=job.gpu)
    began = time.perf_counter()
    plan = builder.build(job.task, progress=progress)
    seconds = round(time.perf_counter() - began, 3)
    write(job.engine, plan)
    if builder.timing_cache and not trt.is_rtx:
        write(job.timing_cache, builder.timing_cache)
    digest, findings = hashlib.sha256(plan).hexdigest(), tuple(builder.findings)
    return Compiled(digest, len(plan), seconds, findings, tuple(trt.take_log("WARNING")))


def _main() -> None:
    pipe = Connection(int(sys.argv[1]))
    with contextlib.suppress(OSError):  # a right that every process has on Linux
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_END)
    lock = threading.Lock()  # TensorRT reports from several threads

    def send(said: str | Compiled | Exception) -> None:
        with lock, _ending_with_parent():
            pipe.send(said)

    def watch() -> None:
        with _ending_with_parent():
            pipe.recv()  # until it ends: nothing more is sent

    with _ending_with_parent():
        job = pipe.recv()
    threading.Thread(target=watch, daemon=True).start()
    try:
        send(_compile(job, send))
    except Exception as error:
        send(_portable(error))
    os._exit(0)  # TensorRT's threads may still log, in a Python that ends


@contextlib.contextmanager
def _ending_with_parent() -> Iterator[None]:
    """End this process where the other end of the pipe is closed."""
    try:
        yield
    except (EOFError, OSError):
        os._exit(1)


def _portable(error: Exception) -> Exception:
    """Return an error that another process can read."""
    if isinstance(error, LGViTEdgeError | OSError):
        with contextlib.suppress(Exception):
            pickle.loads(pickle.dumps(error))
            return error
    cure = "; close other programs, or add swap space" if isinstance(error, MemoryError) else ""
    return BuildError(f"compiling failed: {in_one_line(error)}{cure}")
