"""What a device sends to a server: bytes of JPEGs and of hidden states, and what they change.

``python -m lgvit_edge.benchmarks.experiments.payloads NAME=out/... --data DIR`` encodes the same
images at several qualities, and goes on with each payload after every exit as a server would. The
link's rate at which a hidden state is as quick as a JPEG follows: what it takes longer to send is
what the server saves by not running the blocks before the exit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from lgvit_edge._support.terminal import console, note, progress_bar
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, only_pass, run_command
from lgvit_edge.benchmarks.report.terminal import table_of
from lgvit_edge.errors import UsageError
from lgvit_edge.images.inputs import Inputs
from lgvit_edge.images.labelled import evenly, unlabelled_images
from lgvit_edge.images.pixels import decode_bytes
from lgvit_edge.images.preprocess import network_input
from lgvit_edge.runtime import FixedExit, Session
from lgvit_edge.serving.split import half, jpeg

_QUALITIES = (75, 90, 95)
_TIMED = 50


def main(
    bundles: Annotated[list[str], typer.Argument(metavar="NAME=DIR...", help="Bundles.")],
    data: Annotated[Path, typer.Option(help="Folder of images; folders in it too.")],
    samples: Annotated[int, typer.Option(min=1, help="Number of images, spread evenly.")] = 500,
    json_file: JsonFile = None,
) -> None:
    """Measures what is sent at each exit, how it changes answers, and which is quicker."""
    record = Record(json_file)
    paths = evenly(unlabelled_images(data, note), samples)
    sizes: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for bundle in bundles:
        name, found, folder = bundle.partition("=")
        if not found:
            raise UsageError(f"expected NAME=DIR, found {bundle!r}")
        with Session.open(folder, backend="onnxruntime", threads=1, warm_up=True) as session:
            view = only_pass(session.manifest)
            images = list(network_input(paths, view.preprocess, view.image_size, "uint8"))
            if not sizes:  # of the first bundle, whose answers mean something
                sizes = [_jpegs(session, images, quality) for quality in _QUALITIES]
                console.print(
                    table_of(
                        sizes,
                        "{quality} | {bytes:,.0f} | {same:.1%}",
                        numbers=("quality", "JPEG B", "same answers"),
                    )
                )
            rows += _exits(session, images, name, sizes[1]["bytes"])
    cells = "{bundle} | {exit} | {bytes:,} | {same:.1%} | {saved_ms:.1f} | {mbit:.0f}"
    numbers = ("exit", "hidden B", "same answers", "server saves ms", "as quick at Mbit/s")
    console.print(table_of(rows, cells, "bundle", numbers=numbers))
    record.write(jpeg=sizes, hidden=rows)


def _jpegs(session: Session, images: list[Any], quality: int) -> dict[str, Any]:
    """Returns the mean size of JPEGs of this quality, and how often the answer stays."""
    last = len(session.manifest.segments)
    session.policy = FixedExit(last)
    same, total = 0, 0
    for image in images:
        file = jpeg(image, quality)
        total += len(file)
        ready = Inputs.of_crops([decode_bytes(file, "it")], session.manifest.views, 0)
        (answer,) = session.run_from(0, ready)
        same += answer.class_index == session.predict(image).class_index
    return {"quality": quality, "bytes": total / len(images), "same": same / len(images)}


def _exits(session: Session, images: list[Any], name: str, file: float) -> list[dict[str, Any]]:
    """Returns for each exit what its hidden state takes, changes and saves."""
    last = len(session.manifest.segments)
    session.policy = FixedExit(last)
    ready = [session.prepare([image]) for image in images]
    whole = [session.run(each)[0].class_index for each in ready]
    times = np.median([session.timed_blocks(each) for each in ready[:_TIMED]], axis=0)
    rows = []
    with progress_bar(f"{name}, exits") as progress:
        for exit in range(1, last):
            progress(exit - 1, last - 1)
            same, size = 0, 0
            for each, expected in zip(ready, whole, strict=True):
                state = session.run_until(each, exit, hidden=True).hidden
                assert state is not None
                hidden = half(state, exit)
                size = hidden.nbytes
                same += session.run_from(exit, hidden)[0].class_index == expected
            saved = float(times[:exit].sum())
            rows.append(
                {
                    "bundle": name,
                    "exit": exit,
                    "bytes": size,
                    "same": same / len(images),
                    "saved_ms": saved,
                    "mbit": (size - file) * 8 / saved / 1e3,
                }
            )
    return rows


if __name__ == "__main__":
    run_command(main)
