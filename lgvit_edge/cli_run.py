"""The commands that run a bundle or look at runs: ``bench``, ``compare``, ``predict``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from lgvit_edge._terminal import console, progress_bar, say, table
from lgvit_edge.arguments import (
    AsJson,
    Backend,
    CudaGraphs,
    Device,
    Engines,
    Hint,
    PointName,
    PolicyText,
    Speculate,
    Threads,
    Wait,
    check_folders,
    parse_numbers,
)
from lgvit_edge.errors import DataError, UsageError

if TYPE_CHECKING:
    from lgvit_edge.runtime import TensorRTOptions


def bench(
    engines: Engines,
    data: Annotated[
        Path | None, typer.Option(help="Images: a sub-folder per class, or a flat folder.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="For a flat folder: lines FILE CLASS.")
    ] = None,
    policy: PolicyText = None,
    point: PointName = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Images to measure, spread evenly. Default: all.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Without --data: runs of each exit.")] = 30,
    mix: Annotated[
        str | None, typer.Option(help="Without --data: share of images per exit, comma-separated.")
    ] = None,
    threads: Threads = None,
    device: Device = None,
    backend: Backend = "auto",
    hint: Hint = None,
    wait: Wait = "hybrid",
    cuda_graphs: CudaGraphs = True,
    speculate: Speculate = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the record to this file.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Also write a page to look at: FILE.html.")
    ] = None,
) -> None:
    """Measure latency, MACs and accuracy against the baseline, interleaved in one run."""
    from lgvit_edge._files import write_json
    from lgvit_edge.benchmarks import measure_exits, measure_images, print_report
    from lgvit_edge.benchmarks.gallery import Gallery
    from lgvit_edge.benchmarks.page import check_report, write_page
    from lgvit_edge.benchmarks.survey import survey
    from lgvit_edge.labelled import evenly, find_images
    from lgvit_edge.runtime import TensorRTOptions

    if (labels or samples) and data is None:
        raise UsageError("--labels and --samples need --data")
    check_folders({"--json": json_file, "--report": report})
    if mix and data is not None:
        raise UsageError("--mix is for runs without --data, where exits are forced")
    if report is not None:
        check_report()
    how = TensorRTOptions(wait=wait, cuda_graphs=cuda_graphs, speculate=speculate)
    with (
        _session(engines, policy, point, threads, device, backend, hint, how) as session,
        progress_bar("measuring") as progress,
    ):
        manifest, images, gallery = session.manifest, None, None
        if data is None:
            record = measure_exits(
                session, rounds=rounds, mix=parse_numbers(mix), progress=progress
            )
        else:
            found = find_images(
                data, num_classes=manifest.num_classes, names=manifest.labels, labels=labels
            )
            images = evenly(found, samples)
            gallery = Gallery(manifest.labels) if report is not None else None
            record = measure_images(session, images, progress=progress, watch=gallery)
        if report is not None:
            record["survey"] = survey(session, images, record, progress=progress)
    print_report(record, console)
    if json_file is not None:
        write_json(json_file, record)
        say(f"record: {json_file}")
    if report is not None:
        write_page(report, record, manifest, gallery)
        say(f"page: {report}")


def compare(
    records: Annotated[
        list[Path], typer.Argument(help="What `bench --json` wrote, or bundles; the first leads.")
    ],
    force: Annotated[
        bool, typer.Option(help="Compare what was measured under other conditions, too.")
    ] = False,
    fail_if_slower: Annotated[
        str | None,
        typer.Option(help="5%: exit status 1 when one is slower than the first by more."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put bench records, or bundles' operating points, side by side."""
    from lgvit_edge.benchmarks.compare import compare_records, parse_share, print_comparison

    limit = None if fail_if_slower is None else parse_share(fail_if_slower)
    found = compare_records(records, force=force)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        print_comparison(found, console)
    if limit is not None:
        slower = [row for row in found["rows"][1:] if row["time"] > 1 + limit]
        if slower:
            worst = max(slower, key=lambda row: float(row["time"]))
            raise DataError(
                f"{worst['name']} takes {worst['time']:.3f} of the time of "
                f"{found['rows'][0]['name']}, allowed: {1 + limit:.3f}"
            )


def predict(
    engines: Engines,
    images: Annotated[list[Path], typer.Argument(help="Image files or folders of them.")],
    policy: PolicyText = None,
    point: PointName = None,
    threads: Threads = None,
    device: Device = None,
    backend: Backend = "auto",
    hint: Hint = None,
    wait: Wait = "hybrid",
    cuda_graphs: CudaGraphs = True,
    speculate: Speculate = False,
    as_json: AsJson = False,
) -> None:
    """Classify images: label, confidence, exit taken, latency."""
    import dataclasses

    from lgvit_edge.preprocess import list_images, load_rgb
    from lgvit_edge.runtime import TensorRTOptions

    files = [f for path in images for f in (list_images(path) if path.is_dir() else [path])]
    if not files:
        raise DataError(f"no images in {', '.join(map(str, images))}")
    how = TensorRTOptions(wait=wait, cuda_graphs=cuda_graphs, speculate=speculate)
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    with _session(engines, policy, point, threads, device, backend, hint, how) as session:
        for file in files:
            try:
                frame = load_rgb(file)
            except DataError as error:
                failures.append(str(error))
                continue
            if not rows:
                session.predict(frame)  # the first prediction pays for lazy set-up
            rows.append({"image": str(file), **dataclasses.asdict(session.predict(frame))})
    if as_json:
        print(json.dumps(rows, indent=1))
    elif rows:
        answers = table("image", "label", numbers=("confidence", "exit", "block", "latency (ms)"))
        for row in rows:
            answers.add_row(
                escape(Path(row["image"]).name),
                escape(row["label"]),
                f"{row['confidence']:.1%}",
                str(row["exit"]),
                str(row["block"]),
                f"{row['latency_ms']:.2f}",
            )
        console.print(answers)
    if failures:
        raise DataError("; ".join(failures))


@contextlib.contextmanager
def _session(
    engines: Path,
    policy: str | None,
    point: str | None,
    threads: int | None,
    device: str | None,
    backend: str,
    hint: str | None,
    tensorrt: TensorRTOptions,
) -> Iterator[Any]:
    from lgvit_edge import policy as policies
    from lgvit_edge.runtime import Session

    with Session.open(
        engines,
        backend=backend,
        policy=None if policy is None else policies.parse(policy),
        point=point,
        threads=threads,
        device=device,
        hint=hint,
        tensorrt=tensorrt,
    ) as session:
        yield session
