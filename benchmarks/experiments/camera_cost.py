"""Measures what the camera application costs beside the session that it runs.

``python -m lgvit_edge.benchmarks.experiments.camera_cost --engines out/ --data DIR``
answers the same film, in turn, by ``Session.stream`` alone and by ``Camera`` with its sinks.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from lgvit_edge._support.terminal import console, progress_bar, table
from lgvit_edge.benchmarks.experiments.film import load_pictures, write_film
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, run_command
from lgvit_edge.camera import Camera
from lgvit_edge.camera.sinks.jsonl import JsonLines
from lgvit_edge.camera.sources.base import kind_of
from lgvit_edge.cli.options import Backend, Engines, PolicyText
from lgvit_edge.runtime import Session


def main(
    engines: Engines,
    data: Annotated[Path, typer.Option(help="Folder of JPEG images that the film is made of.")],
    frames: Annotated[int, typer.Option(min=10, help="Frames of the film.")] = 100,
    rounds: Annotated[int, typer.Option(min=2, help="Times that each way runs.")] = 30,
    width: Annotated[int, typer.Option(min=16, help="Width of the film in pixels.")] = 640,
    height: Annotated[int, typer.Option(min=16, help="Height of the film in pixels.")] = 480,
    backend: Backend = "auto",
    policy: PolicyText = None,
    json_file: JsonFile = None,
) -> None:
    """Compares the frames per second of the camera application with those of a stream."""
    record = Record(json_file)
    with (
        tempfile.TemporaryDirectory() as folder,
        Session.open(engines, backend=backend, policy=policy, warm_up=True) as session,
    ):
        film = Path(folder) / "film.mp4"
        write_film(load_pictures(data, frames, width, height), film, 15)

        def stream() -> None:
            for _ in session.stream(decoded(film)):
                pass

        def camera() -> None:
            Camera(str(film), session, pace="fast").run()

        def with_lines() -> None:
            lines = JsonLines(Path(folder) / "answers.jsonl")
            Camera(str(film), session, pace="fast", sinks=[lines]).run()

        ways = {"stream": stream, "camera": camera, "camera, JSON lines": with_lines}
        rates = measure(ways, frames, rounds)
        record.env |= {"runtime": session.describe()}
    rows = table("way", numbers=("frames/s", "of stream", "middle half"))
    of_stream = {}
    for name, found in rates.items():
        # Of turns that ran beside each other, because the machine's speed moves.
        ratios = [rate / alone for rate, alone in zip(found, rates["stream"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        of_stream[name] = {"quarter": low, "median": middle, "three_quarters": high}
        spread = f"{low:.3f} to {high:.3f}"
        rows.add_row(name, f"{statistics.median(found):.1f}", f"{middle:.3f}", spread)
    console.print(rows)
    record.write(frames=frames, size=[width, height], rates=rates, of_stream=of_stream)


def decoded(film: Path) -> Iterator[NDArray[np.uint8]]:
    """Yields the pictures of a film, as the camera application reads them."""
    with contextlib.closing(kind_of(str(film)).open(str(film), 10.0)) as source:
        while (picture := source.read()) is not None:
            yield picture


def measure(
    ways: dict[str, Callable[[], None]], frames: int, rounds: int
) -> dict[str, list[float]]:
    """Runs all ways in turn, once unmeasured first; returns the frames per second of each.

    Turns are short and each round begins with another way, so that what else the machine does
    meets all of them alike.
    """
    names = list(ways)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    with progress_bar("measuring") as progress:
        for number in range(rounds + 1):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                start = time.perf_counter()
                ways[name]()
                if number:
                    rates[name].append(frames / (time.perf_counter() - start))
            progress(number + 1, rounds + 1)
    return rates


if __name__ == "__main__":
    run_command(main)
