"""The ``profile`` command: times every segment layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from lgvit_edge._support.outputs import replacing, write_json
from lgvit_edge._support.terminal import console, note, progress_bar, say
from lgvit_edge.cli.options import (
    Backend,
    Device,
    Engines,
    Precision,
    Threads,
    check_outputs,
    check_picture,
)
from lgvit_edge.errors import UsageError


def profile(
    engines: Engines,
    data: Annotated[
        Path | None,
        Option(help="Folder of images that the runs take in turn. Default: random images."),
    ] = None,
    runs: Annotated[int, Option(min=1, max=1000, help="Number of runs to take medians over.")] = 30,
    top: Annotated[int, Option(min=1, help="Number of slowest layers to show.")] = 10,
    segment: Annotated[
        str | None,
        Option(
            metavar="N|baseline",
            help="Show operators and layers of this segment alone. Default: of all segments.",
        ),
    ] = None,
    threads: Threads = None,
    device: Device = None,
    backend: Backend = "auto",
    precision: Precision = None,
    json_file: Annotated[
        Path | None, Option("--json", help="Also write the record, with every layer, to this file.")
    ] = None,
    plot: Annotated[
        Path | None,
        Option(help="Also plot each segment's time by operator (.png, .svg, .pdf)."),
    ] = None,
) -> None:
    """Time every layer, and compare each segment's share of time with its share of MACs."""
    from lgvit_edge.benchmarks import measure_layers
    from lgvit_edge.benchmarks.report.layers import print_layers
    from lgvit_edge.bundle.directory import open_bundle
    from lgvit_edge.images.labelled import evenly, unlabelled_images
    from lgvit_edge.runtime.backends.base import ChainOptions

    check_picture(plot)
    check_outputs({"--json": json_file, "--plot": plot})
    count = len(open_bundle(engines, verify=False).manifest.segments)
    if segment is not None and segment not in ("baseline", *map(str, range(count))):
        raise UsageError(f"--segment must be 0..{count - 1} or baseline, found {segment!r}")
    options = ChainOptions(threads=threads, device=device, precision=precision)
    images = None if data is None else evenly(unlabelled_images(data, note), runs)
    with progress_bar("profiling") as progress:
        record = measure_layers(
            engines, backend=backend, options=options, images=images, runs=runs, progress=progress
        )
    print_layers(record, console, top=top, part=segment)
    if json_file is not None:
        write_json(json_file, record)
        say(f"record: {json_file}")
    if plot is not None:
        from lgvit_edge.benchmarks.report.layers_plot import draw

        with replacing(plot) as partial:
            draw(record, partial, plot.suffix[1:])
        say(f"picture: {plot}")
