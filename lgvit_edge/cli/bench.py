"""The ``bench`` command: measures latency, MACs and accuracy against the baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from lgvit_edge._support.outputs import write_json
from lgvit_edge._support.terminal import console, progress_bar, say
from lgvit_edge.cli.options import (
    Classes,
    Engines,
    Labels,
    PointName,
    PolicyText,
    RunOptions,
    Samples,
    check_outputs,
    labelled_images,
    parse_numbers,
    with_options,
)
from lgvit_edge.errors import UsageError


@with_options
def bench(
    engines: Engines,
    data: Annotated[
        Path | None,
        Option(
            help="Images: one sub-folder per class, or a flat folder. Default: random images, each "
            "exit forced in turn."
        ),
    ] = None,
    labels: Labels = None,
    classes: Classes = None,
    policy: PolicyText = None,
    point: PointName = None,
    samples: Samples = None,
    rounds: Annotated[int, Option(min=1, help="Without --data: runs per exit.")] = 30,
    mix: Annotated[
        str | None,
        Option(help="Without --data: assumed share of images per exit, such as 40,30,20,10."),
    ] = None,
    *,
    run: RunOptions,
    json_file: Annotated[
        Path | None, Option("--json", help="Also write the record to this file.")
    ] = None,
    report: Annotated[Path | None, Option(help="Also write an HTML report to this file.")] = None,
    energy: Annotated[
        bool, Option(help="Measure energy after latency, where the machine tells it.")
    ] = True,
) -> None:
    """Measure latency, energy, MACs and accuracy; chain and baseline take turns in one run."""
    from lgvit_edge.benchmarks import measure_exits, measure_images, print_report
    from lgvit_edge.benchmarks.energy import EnergyRun
    from lgvit_edge.benchmarks.report.gallery import Gallery
    from lgvit_edge.benchmarks.report.page import check_report, write_page
    from lgvit_edge.benchmarks.report.survey import survey

    if (labels or classes or samples) and data is None:
        raise UsageError("--labels, --classes and --samples need --data")
    check_outputs({"--json": json_file, "--report": report})
    if mix and data is not None:
        raise UsageError("--mix is for runs without --data, where exits are forced")
    if report is not None:
        check_report()
    with run.open(engines, policy, point) as session, progress_bar("measuring") as progress:
        manifest, images, gallery = session.manifest, None, None
        shares = parse_numbers(mix)
        if data is not None:
            images = labelled_images(manifest, data, labels, classes, samples)
            gallery = Gallery(manifest.labels) if report is not None else None
        power = EnergyRun(session) if energy else None
        if images is None:
            record = measure_exits(session, rounds=rounds, mix=shares, progress=progress)
            if power is not None:
                record["energy"] = power.of_exits(record["mix"], progress)
        else:
            record = measure_images(session, images, progress=progress, watch=gallery)
            if power is not None:
                record["energy"] = power.of_images(images, progress)
        if report is not None:
            record["survey"] = survey(session, images, record, progress=progress)
    print_report(record, console)
    if json_file is not None:
        write_json(json_file, record)
        say(f"record: {json_file}")
    if report is not None:
        write_page(report, record, manifest, gallery)
        say(f"page: {report}")
