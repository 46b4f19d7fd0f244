"""The ``predict`` command: classifies image files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.markup import escape
from typer import Argument

from lgvit_edge._support.terminal import console, table
from lgvit_edge.cli.options import AsJson, Engines, PointName, PolicyText, RunOptions, with_options
from lgvit_edge.errors import DataError

if TYPE_CHECKING:
    from lgvit_edge.runtime import Result


@with_options
def predict(
    engines: Engines,
    images: Annotated[list[Path], Argument(help="Image files or folders of them.")],
    policy: PolicyText = None,
    point: PointName = None,
    *,
    run: RunOptions,
    as_json: AsJson = False,
) -> None:
    """Classify images; show label, confidence, exit and latency."""
    from lgvit_edge.images.preprocess import list_images, load_rgb

    files = [f for path in images for f in (list_images(path) if path.is_dir() else [path])]
    if not files:
        raise DataError(f"no images in {', '.join(map(str, images))}")
    results: list[tuple[Path, Result]] = []
    failures: list[str] = []
    with run.open(engines, policy, point) as session:
        for file in files:
            try:
                frame = load_rgb(file)
            except DataError as error:
                failures.append(str(error))
                continue
            if not results:
                session.predict(frame)  # the first prediction pays for lazy set-up
            results.append((file, session.predict(frame)))
    if as_json:
        rows = [{"image": str(file), **result.to_json()} for file, result in results]
        print(json.dumps(rows, indent=1))
    elif results:
        answers = table("image", "label", numbers=("confidence", "exit", "block", "latency (ms)"))
        for file, result in results:
            answers.add_row(
                escape(file.name),
                escape(result.label),
                result.confidence_text,
                str(result.exit),
                str(result.block),
                f"{result.latency_ms:.2f}",
            )
        console.print(answers)
    if failures:
        raise DataError("; ".join(failures))
