"""A job on a Ray cluster: every task answers a shard, and its answers come back to be written.

Ray's part ends there: what is done is known by the shards that were written, here, so a run that
was killed goes on with the others, on this cluster, on another one, or without any.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import platform
import secrets
import socket
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from lgvit_edge import __version__
from lgvit_edge._support.optional import require
from lgvit_edge.errors import (
    BackendError,
    BundleError,
    DataError,
    LGViTEdgeError,
    UsageError,
    in_one_line,
)
from lgvit_edge.machine.cpu import available_cores
from lgvit_edge.offline.batches import answer_batches
from lgvit_edge.offline.job import plain
from lgvit_edge.offline.listing import Listed
from lgvit_edge.offline.opening import Opening
from lgvit_edge.runtime import Session

LOCAL = "local"
_REACHED = 10.0  # seconds in which something must listen at a cluster's address
_CONNECTED = 60.0  # and in which it must be Ray
_TRIES = 4  # of a shard whose worker dies
_STORE = 1 << 27  # bytes that a local cluster keeps for answers on their way
_KEPT = "what is answered is kept: run the same command again to go on"
_GPU_BACKENDS, _GPU_DEVICES = ("tensorrt",), ("cuda",)


@dataclass(frozen=True)
class Task:
    """What every machine must know to answer a shard.

    Attributes:
        opening: how it opens the bundle, which lies at the same path everywhere.
        identity: of the bundle.
        policy: that the session must have, as ``Policy.to_json`` writes it.
        root: the folder of the images, which lies at the same path everywhere.
        batch: images that run together.
        times: whether answers have latencies.
        version: of lgvit-edge.
    """

    opening: Opening
    identity: str
    policy: Mapping[str, Any]
    root: str
    batch: int
    times: bool
    version: str = __version__

    @property
    def on_gpu(self) -> bool:
        """Whether each machine is asked for a GPU, which Ray hides from other tasks."""
        options = self.opening.options
        device = str(options.get("device") or "").partition(":")[0]
        return options.get("backend") in _GPU_BACKENDS or device in _GPU_DEVICES

    @property
    def threads(self) -> int:
        """Cores of a task."""
        return int(self.opening.options.get("threads") or 1)

    def with_options(self, **options: Any) -> Task:
        """Return the same with other options of ``Session.open``."""
        opening = self.opening
        return dataclasses.replace(
            self, opening=dataclasses.replace(opening, options={**opening.options, **options})
        )


Shard = tuple[int, list[Listed]]
Answered = tuple[int, dict[str, Any], list[bytes]]


def answer_shards(
    address: str, task: Task, shards: Iterator[Shard], ran: Mapping[str, str] | None
) -> Generator[Answered, None, None]:
    """Yield each shard's number, what answered it (``Session.describe``) and its lines.

    In the order in which they end. A shard whose worker dies is done again by another.

    Args:
        address: ``local``, or what ``ray.init`` takes.
        task: what is done.
        shards: their numbers and images.
        ran: what earlier shards ran on; None for whatever the first one finds to be best.

    Raises:
        BackendError: the cluster cannot be reached, or workers die again and again.
        UsageError: no machine of the cluster has what a task needs.
        MissingDependency: Ray is not installed.
        LGViTEdgeError: as answering raises; names the machine.
    """
    with _connected(address) as ray:
        # Only what is typed runs on a GPU; other tasks take a core, or as many as were typed.
        if not task.on_gpu and task.opening.options.get("device") in (None, "cpu"):
            task = task.with_options(threads=task.threads)
        needed = {"CPU": task.threads} | ({"GPU": 1} if task.on_gpu else {})
        remote = ray.remote(_answer).options(
            num_cpus=task.threads, num_gpus=needed.get("GPU", 0), max_retries=_TRIES - 1
        )
        running: dict[Any, int] = {}
        while True:
            places = _places(ray, needed)
            # All machines run what the first shard ran on: another backend rounds otherwise.
            most = 1 if ran is None else 2 * places
            for shard, images in islice(shards, max(0, most - len(running))):
                running[remote.remote(_settled(task, ran), images)] = shard
            if not running:
                return
            for done in ray.wait(list(running), num_returns=1)[0]:
                shard = running.pop(done)
                described, lines = _result(ray, done, shard)
                ran = ran or described
                yield shard, described, lines


def _settled(task: Task, ran: Mapping[str, Any] | None) -> Task:
    if ran is None:
        return task
    return task.with_options(**{n: ran[n] for n in ("backend", "precision") if n in ran})


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Connect to a cluster, or start one on this machine while the body runs; yield the package.

    Nothing is reported to Ray's makers. A cluster that is started here has no dashboard, listens on
    the loopback address alone, knows its own by a token, and leaves no files.

    Raises:
        BackendError: no cluster answers at this address.
    """
    with contextlib.ExitStack() as stack:
        variables = {"RAY_USAGE_STATS_ENABLED": "0"}
        started: dict[str, Any] = {}
        if address == LOCAL:
            variables["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # loopback, as on those systems
            variables["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
            started = {
                "include_dashboard": False,
                "num_cpus": available_cores(),
                "object_store_memory": _STORE,
                "_temp_dir": stack.enter_context(
                    tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
                ),
            }
        stack.enter_context(_environment(variables))
        try:
            _check_reachable(address)
            ray = require("ray", extra="ray")
            options = {"log_to_driver": False, "logging_level": logging.ERROR, **started}
            connect = partial(ray.init, address, **options)
            if address == LOCAL:
                connect()  # in this thread, because what it starts ends with the thread
            else:
                _within(_CONNECTED, connect)
        except LGViTEdgeError:
            raise
        except Exception as error:  # of many kinds
            raise BackendError(
                f"no Ray cluster answers at {address}: {in_one_line(error)}; start one with: ray "
                "start --head, and give its HOST:PORT; or let one be started on this machine: "
                "--ray local"
            ) from None
        stack.callback(ray.shutdown)
        yield ray


def _within(seconds: float, call: Callable[[], object]) -> None:
    """Call in a thread that is left behind if it takes longer; raises what the call raises.

    Raises:
        TimeoutError: it takes longer. Ray waits for minutes for what is not Ray.
    """
    failures: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="ray.init", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"nothing that is Ray answered within {seconds:g} s")
    if failures:
        raise failures[0]


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment while the body runs."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _check_reachable(address: str) -> None:
    """Look whether anything listens: Ray itself waits long, and logs much.

    Raises:
        OSError: nothing does.
        ValueError: the address is none.
    """
    if address in (LOCAL, "auto"):
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise ValueError("expected HOST:PORT of a cluster that this machine belongs to")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_REACHED):
        pass


def _places(ray: Any, needed: Mapping[str, int]) -> int:
    """Return how many tasks the cluster has room for.

    Raises:
        UsageError: for none; Ray would wait for ever.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    places = sum(
        min(int(node.get(name, 0) // count) for name, count in needed.items()) for node in nodes
    )
    if not places:
        wanted = " and ".join(f"{count} {name}" for name, count in needed.items())
        raise UsageError(
            f"no machine of the cluster has {wanted}, which a task needs; --threads says how many "
            "cores it takes, --backend tensorrt or --device cuda that it takes a GPU"
        )
    return places


def _result(ray: Any, done: Any, shard: int) -> tuple[dict[str, Any], list[bytes]]:
    """Return what a task returned.

    Raises:
        LGViTEdgeError: what the task raised.
        BackendError: it ended otherwise.
    """
    try:
        described, lines = ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, LGViTEdgeError):
            raise error.cause from None
        missing = isinstance(error.cause, ImportError)
        cure = f"install lgvit-edge {__version__} there" if missing else _KEPT
        raise BackendError(f"a worker failed: {in_one_line(error.cause)}; {cure}") from None
    except ray.exceptions.RayError as error:
        raise BackendError(
            f"shard {shard} was tried {_TRIES} times and its workers died each time, the last of: "
            f"{in_one_line(error)}; is there enough memory for their sessions? {_KEPT}"
        ) from None
    return described, lines


# The session of a worker's process, for its next shard
_open: tuple[Task, Session] | None = None


def _answer(task: Task, images: list[Listed]) -> tuple[dict[str, Any], list[bytes]]:
    """Answer a shard; runs on a worker, and keeps the session for the next one.

    Raises:
        LGViTEdgeError: names the machine.
    """
    try:
        session = _session(task)
        batches = (images[i : i + task.batch] for i in range(0, len(images), task.batch))
        answers = answer_batches(session, batches, decoders=task.threads, times=task.times)
        return session.describe(), [line for lines in answers for line in lines]
    except LGViTEdgeError as error:
        raise type(error)(f"worker {platform.node()}: {error}") from None


def _session(task: Task) -> Session:
    global _open
    if _open is not None and _open[0] == task:
        return _open[1]
    if task.version != __version__:
        raise UsageError(
            f"expected lgvit-edge {task.version}, found {__version__}; install the same version "
            "on every machine"
        )
    if not os.path.isdir(task.root):
        raise DataError(
            f"there is no folder {task.root}: mount the images at the same path on every machine"
        )
    try:
        session = task.opening.open(task.identity)
    except BundleError as error:
        raise BundleError(
            f"{error}; the bundle must be at the same path on every machine"
        ) from None
    if plain(session.policy) != task.policy:
        session.close()
        raise BundleError(
            f"{task.opening.engines} has another policy there; copy the job's bundle to the same "
            "path on every machine"
        )
    if _open is not None:
        _open[1].close()
    _open = task, session
    return session
