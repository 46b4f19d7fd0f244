"""The ``predict`` command: classifies image files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from lgvit_edge._support.terminal import console, table
from lgvit_edge.cli.options import (
    AsJson,
    Backend,
    CudaGraphs,
    Device,
    Engines,
    PointName,
    PolicyText,
    Precision,
    Speculate,
    Threads,
    Wait,
    open_session,
)
from lgvit_edge.errors import DataError


def predict(
    engines: Engines,
    images: Annotated[list[Path], typer.Argument(help="Image files or folders of them.")],
    policy: PolicyText = None,
    point: PointName = None,
    threads: Threads = None,
    device: Device = None,
    backend: Backend = "auto",
    precision: Precision = None,
    wait: Wait = None,
    cuda_graphs: CudaGraphs = None,
    speculate: Speculate = None,
    as_json: AsJson = False,
) -> None:
    """Classify images; show label, confidence, exit and latency."""
    from lgvit_edge.images.preprocess import list_images, load_rgb

    files = [f for path in images for f in (list_images(path) if path.is_dir() else [path])]
    if not files:
        raise DataError(f"no images in {', '.join(map(str, images))}")
    rows: list[dict[str, Any]] = []
    confidences: list[str] = []
    failures: list[str] = []
    with open_session(
        engines, policy, point, threads, device, backend, precision, wait, cuda_graphs, speculate
    ) as session:
        for file in files:
            try:
                frame = load_rgb(file)
            except DataError as error:
                failures.append(str(error))
                continue
            if not rows:
                session.predict(frame)  # the first prediction pays for lazy set-up
            result = session.predict(frame)
            rows.append({"image": str(file), **result.to_json()})
            confidences.append(result.confidence_text)
    if as_json:
        print(json.dumps(rows, indent=1))
    elif rows:
        answers = table("image", "label", numbers=("confidence", "exit", "block", "latency (ms)"))
        for row, confidence in zip(rows, confidences, strict=True):
            answers.add_row(
                escape(Path(row["image"]).name),
                escape(row["label"]),
                confidence,
                str(row["exit"]),
                str(row["block"]),
                f"{row['latency_ms']:.2f}",
            )
        console.print(answers)
    if failures:
        raise DataError("; ".join(failures))
