"""Holds a real Triton against a local session: answers, throughput, and a server that is killed.

``python -m lgvit_edge.benchmarks.experiments.triton --engines out/ --data DIR`` writes a bundle as
a repository, starts the server that ``make dev`` unpacked, and asks it from several clients,
each of which sends its next image when it has the answer to the last. Server and clients share this
machine. The local session answers the same images in turn with the server, in batches of as many
as there are clients. At last the server is killed while clients ask, and started again.

Of the layout ``segments``, the calling model is the real one. Segments run in Python models,
because this server lacks Triton's ONNX Runtime backend.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer

from lgvit_edge._support.optional import require
from lgvit_edge._support.terminal import console, note, progress_bar
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, run_command
from lgvit_edge.benchmarks.experiments.triton_server import (
    TritonServer,
    missing,
    stand_in,
)
from lgvit_edge.benchmarks.report.terminal import table_of
from lgvit_edge.cli.options import Engines
from lgvit_edge.errors import BackendError, UsageError
from lgvit_edge.images.labelled import evenly, unlabelled_images
from lgvit_edge.images.preprocess import ImageLike, network_input
from lgvit_edge.runtime import Result, Session
from lgvit_edge.serving.contract import ENCODED, IMAGE
from lgvit_edge.serving.options import RunParameters
from lgvit_edge.serving.repository import ServingOptions, write_repository

_MODEL = "lgvit"
_COMPARED = ("class_index", "exit", "confidence")
_NEAR = 1e-5  # confidences: batches of another size are summed in another order
Answer = tuple[int, int, float]  # as ``_COMPARED``


def main(
    engines: Engines,
    data: Annotated[Path, typer.Option(help="Folder of images; folders in it too.")],
    policy: Annotated[str, typer.Option(help="Policy, as for bench.")] = "confidence:0.6",
    samples: Annotated[int, typer.Option(min=16, help="Number of images, spread evenly.")] = 2000,
    clients: Annotated[int, typer.Option(min=1, help="How many ask at once.")] = 8,
    protocol: Annotated[
        list[str] | None, typer.Option(help="http or grpc; can be repeated. Default: both.")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="image (frames of the network's size) or encoded (files); can be repeated. "
            "Default: both."
        ),
    ] = None,
    chunks: Annotated[int, typer.Option(min=1, help="How often session and server swap.")] = 10,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Of the session. Default: as many as clients.")
    ] = None,
    layout: Annotated[str, typer.Option(help="As of lgvit-edge triton.")] = "session",
    instances: Annotated[int, typer.Option(min=1, help="As of lgvit-edge triton.")] = 1,
    threads: Annotated[int | None, typer.Option(help="As of lgvit-edge triton.")] = None,
    queue_delay_us: Annotated[int, typer.Option(help="As of lgvit-edge triton.")] = 2000,
    shared_memory: Annotated[
        bool, typer.Option("--shared-memory", help="Frames go through shared memory.")
    ] = False,
    kill: Annotated[bool, typer.Option(help="Whether the server is killed at last.")] = True,
    json_file: JsonFile = None,
) -> None:
    """Compares the answers and the throughput of Triton with those of a local session."""
    record = Record(json_file)
    if (why := missing()) is not None:
        raise UsageError(why)
    with (
        tempfile.TemporaryDirectory() as folder,
        Session.open(engines, backend="onnxruntime", policy=policy, warm_up=True) as session,
    ):
        record.env |= {"runtime": session.describe()}
        paths = evenly(unlabelled_images(data, note), samples)
        images = _Images(session, paths)
        repository = Path(folder) / "models"
        run = RunParameters(backend="onnxruntime", policy=policy, threads=threads)
        options = ServingOptions(_MODEL, layout, run, instances, queue_delay_us)
        write_repository(engines, repository, options)
        stand_in(repository)
        protocols, rows = protocol or ["http", "grpc"], []
        with TritonServer(repository, Path(folder) / "log") as server:
            load = _Load(server, images, clients, shared_memory)
            with progress_bar("in turn") as progress:
                ways = [(k, p) for p in protocols for k in kind or (IMAGE, ENCODED)]
                for done, (each, by) in enumerate(ways):
                    progress(done, len(ways))
                    rows.append(_compare(session, load, each, by, chunks, batch or clients))
            killed = [_killed(session, load, by) for by in protocols if kill]
    cells = (
        "{input} | {protocol} | {local:.1f} | {served:.1f} | {ratio:.3f} | {batch:.2f} | "
        "{images} | {differ} | {confidence_differs:.1g}"
    )
    numbers = ("session/s", "Triton/s", "ratio", "batch", "images", "differ", "confidence")
    console.print(table_of(rows, cells, "input", "protocol", numbers=numbers))
    for one in killed:
        console.print(
            f"killed under load, {one['protocol']}: {one['answers']} answers until then, "
            f"{one['wrong']} of them wrong; {one['errors']} clients of {clients} got an error; "
            f"ready again after {one['restart_s']:.1f} s, then {one['wrong_after']} of "
            f"{one['answers_after']} answers wrong"
        )
    record.write(rows=rows, killed=killed, options=vars(options) | {"run": run.given})


class _Images:
    """The same images as frames of the network's size, as files, and as paths of these."""

    def __init__(self, session: Session, paths: Sequence[Path]) -> None:
        self.paths = paths
        self.files = [path.read_bytes() for path in paths]
        size = session.manifest.passes[0].image_size
        spec = session.manifest.passes[0].preprocess
        self.frames = list(network_input(paths, spec, size, "uint8"))

    def local(self, kind: str) -> Sequence[ImageLike]:
        """Returns what the session takes: files it decodes, as the server does."""
        return self.frames if kind == IMAGE else self.paths


class _Load:
    """Clients that ask a server at the same time, each one image after the other."""

    def __init__(
        self, server: TritonServer, images: _Images, clients: int, shared_memory: bool
    ) -> None:
        self.server, self.images, self.clients = server, images, clients
        self._shared_memory = shared_memory
        self._counts = re.compile(
            rf'^nv_inference_(count|exec_count){{model="{_MODEL}",version="1"}} (\S+)$', re.M
        )

    def ask(
        self,
        kind: str,
        protocol: str,
        places: Sequence[int],
        after: Callable[[], object] = lambda: None,
    ) -> tuple[list[tuple[int, Answer]], list[str]]:
        """Returns every image's place and answer, and what ended clients before the end.

        ``after`` is called after each answer.
        """
        answers: list[tuple[int, Answer]] = []
        ends: list[str] = []
        waiting, lock = iter(places), threading.Lock()

        def one(number: int) -> None:
            try:
                with _client(self.server, protocol) as (module, client):
                    send = self._sender(module, client, kind, number)
                    while True:
                        with lock:
                            place = next(waiting, None)
                        if place is None:
                            return
                        answers.append((place, send(place)))
                        after()
            except Exception as error:  # each library has its own
                ends.append(f"{type(error).__name__}: {error}")

        threads = [threading.Thread(target=one, args=(n,)) for n in range(self.clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers, ends

    def batches(self) -> tuple[float, float]:
        """Returns how many images Triton has had answered, and in how many batches."""
        found = dict(self._counts.findall(self.server.metrics()))
        return float(found["count"]), float(found["exec_count"])

    def _sender(self, module: Any, client: Any, kind: str, number: int) -> Callable[[int], Answer]:
        outputs = [module.InferRequestedOutput(name) for name in _COMPARED]
        shape = [1, *self.images.frames[0].shape] if kind == IMAGE else [1, 1]
        tensor = module.InferInput(kind, shape, "UINT8" if kind == IMAGE else "BYTES")
        region = None
        if self._shared_memory and kind == IMAGE:
            memory = require("tritonclient.utils.shared_memory", extra="dev")
            name, size = f"lgvit_edge_{os.getpid()}_{number}", self.images.frames[0].nbytes
            region = memory.create_shared_memory_region(name, f"/{name}", size)
            client.unregister_system_shared_memory(name)
            client.register_system_shared_memory(name, f"/{name}", size)
            tensor.set_shared_memory(name, size)

        def send(place: int) -> Answer:
            if kind != IMAGE:
                tensor.set_data_from_numpy(np.array([[self.images.files[place]]], object))
            elif region is None:
                tensor.set_data_from_numpy(self.images.frames[place][None])
            else:
                memory.set_shared_memory_region(region, [self.images.frames[place][None]])
            answer = client.infer(_MODEL, [tensor], outputs=outputs)
            index, exit, confidence = (answer.as_numpy(name)[0, 0].item() for name in _COMPARED)
            return index, exit, confidence

        return send


@contextlib.contextmanager
def _client(server: TritonServer, protocol: str) -> Iterator[tuple[Any, Any]]:
    module = require(f"tritonclient.{protocol}", extra="dev")
    client = module.InferenceServerClient(server.url(protocol))
    try:
        yield module, client
    finally:
        client.close()


def _compare(
    session: Session, load: _Load, kind: str, protocol: str, chunks: int, batch: int
) -> dict[str, Any]:
    """Asks session and server for the same images in turn, a chunk after the other."""
    images = load.images
    raw: dict[str, list[float]] = {"local_s": [], "served_s": []}
    source, count = images.local(kind), len(images.paths)
    load.ask(kind, protocol, range(load.clients * 4))
    for size in range(1, batch + 1):  # binds every size of batch
        session.predict_batch(images.frames[:size])
    before, differ, furthest = load.batches(), 0, 0.0
    parts = np.array_split(np.arange(count), chunks)
    for places in parts:
        start = time.perf_counter()
        expected: list[Result] = []
        for first in range(0, len(places), batch):
            rows = places[first : first + batch]
            expected += session.predict_batch(source[rows[0] : rows[-1] + 1])
        middle = time.perf_counter()
        answers = _all_answers(load, kind, protocol, places.tolist())
        end = time.perf_counter()
        raw["local_s"].append(middle - start)
        raw["served_s"].append(end - middle)
        for place, result in zip(places.tolist(), expected, strict=True):
            differ += _differs(answers[place], result)
            furthest = max(furthest, abs(answers[place][2] - float(np.float32(result.confidence))))
    done, batches = np.subtract(load.batches(), before).tolist()
    pairs = list(zip(map(len, parts), raw["local_s"], raw["served_s"], strict=True))
    return {
        "input": kind,
        "protocol": protocol,
        "images": count,
        "local": median(size / local for size, local, _ in pairs),
        "served": median(size / served for size, _, served in pairs),
        "ratio": median(local / served for _, local, served in pairs),
        "batch": done / batches,
        "local_batch": batch,
        "differ": differ,
        "confidence_differs": furthest,
        "raw_s": {name: np.round(seconds, 4).tolist() for name, seconds in raw.items()},
    }


def _all_answers(load: _Load, kind: str, protocol: str, places: Sequence[int]) -> dict[int, Answer]:
    """Returns the server's answers by place.

    Raises:
        BackendError: a client ended early.
    """
    answers, ends = load.ask(kind, protocol, places)
    if ends:
        raise BackendError(f"a client ended early: {ends[0]}")
    return dict(answers)


def _differs(answer: Answer, result: Result) -> bool:
    same = answer[:2] == (result.class_index, result.exit)
    return not (same and math.isclose(answer[2], result.confidence, rel_tol=0, abs_tol=_NEAR))


def _killed(session: Session, load: _Load, protocol: str) -> dict[str, Any]:
    """Kills the server while clients ask, and starts it again."""
    frames = load.images.frames[:400]
    places, expected = list(range(len(frames))), session.predict_batch(frames)
    enough = threading.Semaphore(0)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(load.ask, IMAGE, protocol, places * 50, enough.release)
        for _ in range(100):
            enough.acquire(timeout=60)
        load.server.kill()
        before, ends = asking.result()
    start = time.perf_counter()
    load.server.start()
    restart = time.perf_counter() - start
    after = _all_answers(load, IMAGE, protocol, places)
    return {
        "protocol": protocol,
        "answers": len(before),
        "wrong": sum(_differs(answer, expected[place]) for place, answer in before),
        "errors": len(ends),
        "said": sorted(set(ends)),
        "restart_s": restart,
        "answers_after": len(after),
        "wrong_after": sum(_differs(answer, expected[place]) for place, answer in after.items()),
    }


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the server too
    run_command(main)
