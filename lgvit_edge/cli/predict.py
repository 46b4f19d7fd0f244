"""The ``predict`` command: classifies image files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument

from lgvit_edge._support.finite_json import dumps
from lgvit_edge._support.terminal import console, note, plain, table
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
    from lgvit_edge.images.labelled import unlabelled_images
    from lgvit_edge.images.preprocess import load_rgb

    files = [
        (file, file.relative_to(path if path.is_dir() else path.parent))
        for path in images
        for file in (unlabelled_images(path, note) if path.is_dir() else [path])
    ]
    results: list[tuple[Path, Path, Result]] = []
    failures: list[str] = []
    with run.open(engines, policy, point) as session:
        manifest = session.manifest
        for file, name in files:
            try:
                frame = load_rgb(file)
            except DataError as error:
                failures.append(str(error))
                continue
            if not results:
                session.predict(frame)  # the first prediction pays for lazy set-up
            results.append((file, name, session.predict(frame)))
    if as_json:
        rows = [{"image": str(file), **result.to_json()} for file, _, result in results]
        print(dumps(rows))
    elif results:
        several = len(manifest.passes) > 1
        columns = ("exit", *(("pass",) if several else ()), "block", "latency (ms)")
        answers = table("image", "label", numbers=("confidence", *columns))
        for _, name, result in results:
            answers.add_row(
                plain(str(name)),
                plain(result.label),
                result.confidence_text,
                str(result.exit),
                *([manifest.pass_title(result.pass_number)] if several else []),
                str(result.block),
                f"{result.latency_ms:.2f}",
            )
        console.print(answers)
    if failures:
        count = f"{len(failures)} of {len(files)} images cannot be read: " if files[1:] else ""
        more = f"; and {len(failures) - 5} more" if failures[5:] else ""
        raise DataError(f"{count}{'; '.join(failures[:5])}{more}")
