"""Measures what viewers of the live page cost the frames: latency with some, and with none.

``python -m lgvit_edge.benchmarks.experiments.viewers --engines out/`` answers frames as the camera
application does, in blocks that alternate: nobody looks, or ``--viewers`` do. They are real HTTP
clients in another process, each of all figures and pictures.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image

from lgvit_edge._support.terminal import console, progress_bar
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, run_command
from lgvit_edge.camera.monitor import Monitor
from lgvit_edge.camera.page.server import Page
from lgvit_edge.camera.shot import Answer, Event, Shot
from lgvit_edge.cli.options import Backend, Engines
from lgvit_edge.images.labelled import evenly, unlabelled_images
from lgvit_edge.images.preprocess import load_rgb
from lgvit_edge.runtime import Session

_SETTLE = 1.0  # seconds at the start of a block that do not count
_SIZE = (1280, 720)  # of a frame


def main(
    engines: Engines,
    data: Annotated[
        Path | None, typer.Option(help="Images for frames; otherwise blurred noise.")
    ] = None,
    cameras: Annotated[int, typer.Option(min=1, help="Cameras.")] = 1,
    fps: Annotated[
        float, typer.Option(min=0, help="Frames per second of each; 0: as fast as they go.")
    ] = 15.0,
    viewers: Annotated[int, typer.Option(min=1, max=12, help="Viewers of all cameras.")] = 5,
    rounds: Annotated[int, typer.Option(min=2, help="Pairs of blocks.")] = 20,
    seconds: Annotated[float, typer.Option(min=1, help="Length of a block.")] = 5.0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the session.")] = None,
    backend: Backend = "auto",
    json_file: JsonFile = None,
) -> None:
    """Answers frames in real time, in blocks with and without viewers, and compares latencies."""
    record = Record(json_file)
    with Session.open(engines, backend=backend, threads=threads, warm_up=True) as session:
        frames = _frames(data)
        with _viewing(session, cameras, viewers) as (monitor, look):
            blocks = _alternate(session, monitor, frames, look, fps, rounds, seconds)
        record.env |= {"runtime": session.describe()}
    figures = compare(blocks)
    for name, text in (("median_ms", "median latency"), ("p99_ms", "p99 latency")):
        row = figures[name]
        console.print(
            f"{text}: {row['without']:.3f} ms without viewers, {row['with']:.3f} with {viewers}; "
            f"ratio of blocks {row['ratio']:.4f} ({row['low']:.4f} to {row['high']:.4f})",
            highlight=False,
        )
    seen = [block["seen"] for block in blocks if block["viewers"]]
    console.print(
        f"frames in a block: {figures['frames']['without']:.0f} and "
        f"{figures['frames']['with']:.0f}; {np.median(seen) / viewers / 1e6:.2f} MB/s a viewer",
        highlight=False,
    )
    record.write(cameras=cameras, fps=fps, viewers=viewers, seconds=seconds, **figures, raw=blocks)


def compare(blocks: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Returns, of blocks in pairs, medians without and with viewers, and their ratio.

    ``ratio`` is the median over pairs of neighbours, ``low`` and ``high`` its 95 % interval.
    """
    sides = [[block for block in blocks if block["viewers"] is side] for side in (False, True)]
    figures = {}
    for name in ("median_ms", "p99_ms", "frames"):
        values = np.array([[block[name] for block in side] for side in sides])
        ratios = values[1] / values[0]
        drawn = np.random.default_rng(0).integers(0, len(ratios), (2000, len(ratios)))
        low, high = np.percentile(np.median(ratios[drawn], axis=1), (2.5, 97.5))
        without, with_them = np.median(values, axis=1).tolist()
        figures[name] = {
            "without": without,
            "with": with_them,
            "ratio": float(np.median(ratios)),
            "low": float(low),
            "high": float(high),
        }
    return figures


def _frames(data: Path | None) -> list[NDArray[np.uint8]]:
    """Returns a few frames, ``[720, 1280, 3] uint8`` RGB."""
    if data is not None:
        paths = evenly(unlabelled_images(data), 16)
        pictures = [Image.fromarray(load_rgb(path)) for path in paths]
    else:
        noise = np.random.default_rng(0).integers(0, 256, (16, 45, 80, 3), np.uint8)
        pictures = [Image.fromarray(picture) for picture in noise]
    return [np.asarray(picture.resize(_SIZE)) for picture in pictures]


def _alternate(
    session: Session,
    monitor: Monitor,
    frames: list[NDArray[np.uint8]],
    look: Connection,
    fps: float,
    rounds: int,
    seconds: float,
) -> list[dict[str, Any]]:
    blocks = []
    with progress_bar("answering") as progress:
        for round in range(rounds):
            for viewers in (False, True) if round % 2 == 0 else (True, False):
                look.send(viewers)
                _answer(session, monitor, frames, fps, _SETTLE)
                look.send(None)
                before, begun = look.recv(), time.monotonic()
                latencies = np.array(_answer(session, monitor, frames, fps, seconds))
                look.send(None)
                seen = (look.recv() - before) / (time.monotonic() - begun)
                median, p99 = np.percentile(latencies, (50, 99)).tolist()
                block = {"viewers": viewers, "median_ms": median, "p99_ms": p99}
                blocks.append(block | {"frames": len(latencies), "seen": seen})
            progress(round + 1, rounds)
    return blocks


def _answer(
    session: Session,
    monitor: Monitor,
    frames: list[NDArray[np.uint8]],
    fps: float,
    seconds: float,
) -> list[float]:
    """Answer frames of all cameras for so long; returns milliseconds from frame to answer."""
    latencies: list[float] = []
    names = monitor.cameras
    begun = time.perf_counter()
    number = 0
    while (now := time.perf_counter()) - begun < seconds:
        if fps:
            due = begun + number / (fps * len(names))
            time.sleep(max(0.0, due - now))
        camera, image = names[number % len(names)], frames[number % len(frames)]
        start, moment = time.perf_counter(), time.time()
        result = session.run(session.prepare([image]), starts=[start])[0]
        latency = (time.perf_counter() - start) * 1e3
        answer = Answer(
            *(camera, None, (0, 0, *_SIZE), number, moment, result.label, result.label),
            *(result.class_index, result.confidence, latency, session.point, 0, result),
        )
        monitor.shot(Shot(camera, number, moment, (answer,), image, fps or None))
        # What follows the answer holds the next frame up, so it counts where none is awaited.
        latencies.append(latency if fps else (time.perf_counter() - start) * 1e3)
        number += 1
    return latencies


@contextlib.contextmanager
def _viewing(session: Session, cameras: int, viewers: int) -> Iterator[tuple[Monitor, Connection]]:
    """Serve a page, and start its viewers; what is sent to the connection says whether they look.

    ``None`` asks how many bytes they have seen so far.
    """
    monitor = Monitor(session, {f"camera {i}": "none" for i in range(cameras)})
    for name in monitor.cameras:
        monitor.event(Event(time.time(), name, "opened", state="live"))
    page = Page(monitor, session, port=0)
    page.open()
    page.start()
    ours, theirs = multiprocessing.Pipe()
    port = int(page.url.rsplit(":", 1)[1][:-1])
    arguments = (theirs, port, cameras, viewers)
    process = multiprocessing.get_context("spawn").Process(target=_look, args=arguments)
    process.start()
    theirs.close()
    try:
        yield monitor, ours
    finally:
        ours.close()
        process.join(10)
        page.stop()


def _look(orders: Connection, port: int, cameras: int, viewers: int) -> None:
    """Look at the page as told, in a process that stands back: real viewers are elsewhere."""
    os.nice(19)
    places = "&".join(f"camera={i}" for i in range(cameras))
    paths = ["/api/events", f"/api/pictures?{places}"] * viewers
    seen = [0] * len(paths)
    open_ones: list[socket.socket] = []

    def read(viewer: int, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while part := connection.recv(1 << 18):
                seen[viewer] += len(part)

    with contextlib.suppress(EOFError, OSError):
        while True:
            order = orders.recv()
            if order is None:
                orders.send(sum(seen))
                continue
            for connection in open_ones:
                connection.shutdown(socket.SHUT_RDWR)
                connection.close()
            open_ones = []
            for viewer, path in enumerate(paths if order else ()):
                connection = socket.create_connection(("127.0.0.1", port))
                connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                threading.Thread(target=read, args=(viewer, connection), daemon=True).start()
                open_ones.append(connection)


if __name__ == "__main__":
    run_command(main)
