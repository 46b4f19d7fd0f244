"""The ``bench`` command: measures latency, MACs and accuracy against the baseline."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from lgvit_edge._support.outputs import replacing, write_json
from lgvit_edge._support.terminal import console, note, progress_bar, say
from lgvit_edge.cli.options import (
    Classes,
    Labels,
    PointName,
    PolicyText,
    RunOptions,
    Samples,
    check_outputs,
    check_picture,
    labelled_images,
    parse_numbers,
    telling,
    with_options,
)
from lgvit_edge.errors import BundleError, DataError, UsageError

if TYPE_CHECKING:
    from lgvit_edge.images.labelled import LabelledImage


@with_options
def bench(
    engines: Annotated[
        list[Path],
        Option(
            help="Bundle folder that `lgvit-edge export` wrote. Given several times, all are "
            "measured in turn on --data, without energy, in float32 unless --precision is given; "
            "see docs/worth-it.md."
        ),
    ],
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
    plot: Annotated[
        Path | None,
        Option(help="Of several bundles: plot accuracy against latency (.png, .svg, .pdf)."),
    ] = None,
    energy: Annotated[
        bool, Option(help="Measure energy after latency, where the machine tells it.")
    ] = True,
) -> None:
    """Measure latency, energy, MACs and accuracy; chain and baseline take turns in one run.

    Of several bundles, plain models included, say which ones pay. Each bundle keeps what it was
    compared with.
    """
    if len(engines) > 1:
        only = {"--policy": policy, "--point": point, "--mix": mix, "--report": report}
        if given := [option for option, value in only.items() if value is not None]:
            raise UsageError(f"{given[0]} is for one bundle, found {len(engines)}")
        if data is None:
            raise UsageError("several bundles are compared on labelled images: add --data DIR")
        _bench_several(engines, data, labels, classes, samples, run, json_file, plot)
        return
    (bundle,) = engines
    if plot is not None:
        raise UsageError("--plot is for several bundles; for one: --report FILE.html")
    from lgvit_edge.benchmarks import measure_exits, measure_images, print_report
    from lgvit_edge.benchmarks.energy import EnergyRun
    from lgvit_edge.benchmarks.report.gallery import Gallery
    from lgvit_edge.benchmarks.report.html import check_report
    from lgvit_edge.benchmarks.report.page import write_page
    from lgvit_edge.benchmarks.report.survey import survey

    if (labels or classes or samples) and data is None:
        raise UsageError("--labels, --classes and --samples need --data")
    check_outputs({"--json": json_file, "--report": report})
    if mix and data is not None:
        raise UsageError("--mix is for runs without --data, where exits are forced")
    if report is not None:
        check_report()
    with run.open(bundle, policy, point) as session, progress_bar("measuring") as progress:
        manifest, images, gallery = session.manifest, None, None
        shares = parse_numbers(mix)
        if data is not None:
            tell = telling(told := list[str]())
            images = labelled_images(manifest, data, labels, classes, samples, tell)
            gallery = Gallery(manifest.labels) if report is not None else None
        power = EnergyRun(session) if energy else None
        if images is None:
            record = measure_exits(session, rounds=rounds, mix=shares, progress=progress)
            if power is not None:
                record["energy"] = power.of_exits(record["mix"], progress)
        else:
            record = measure_images(session, images, progress=progress, watch=gallery)
            record["notes"] = told
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


def _bench_several(
    engines: list[Path],
    data: Path,
    labels: Path | None,
    classes: str | None,
    samples: int | None,
    run: RunOptions,
    json_file: Path | None,
    plot: Path | None,
) -> None:
    from lgvit_edge.benchmarks.contenders import measure_contenders, plain_models
    from lgvit_edge.benchmarks.report.contenders import draw_contenders, print_contenders
    from lgvit_edge.bundle.directory import add_to_manifest

    check_picture(plot)
    check_outputs({"--json": json_file, "--plot": plot})
    names = _names(engines)
    with contextlib.ExitStack() as stack:
        sessions = {
            name: stack.enter_context(run.open_alike(bundle)) for name, bundle in names.items()
        }
        listed: dict[object, Sequence[LabelledImage]] = {}  # with the same classes, once
        images = {}
        tell = telling(told := list[str]())
        for name, session in sessions.items():
            manifest = session.manifest
            known = manifest.labels, manifest.num_classes
            if known not in listed:
                # Names tell more than an order that was given for bundles without.
                order = None if manifest.labels else classes
                try:
                    listed[known] = labelled_images(manifest, data, labels, order, samples, tell)
                except DataError as error:
                    raise DataError(f"{name}: {error}") from None
            images[name] = listed[known]
        with progress_bar("measuring") as progress:
            record = measure_contenders(sessions, images, progress=progress) | {"notes": told}
        compared = plain_models(record, sessions)
    print_contenders(record, console)
    for name, models in compared.items():
        try:
            identity = record["bundles"][name]["identity"]
            add_to_manifest(names[name], identity, plain_models=models)
            say(f"kept in {names[name]}: tune and bench will warn below these plain models")
        except BundleError as error:
            note(f"the comparison is not kept in {names[name]}: {error}")
    if json_file is not None:
        write_json(json_file, record)
        say(f"record: {json_file}")
    if plot is not None:
        with replacing(plot) as partial:
            draw_contenders(record, partial, plot.suffix[1:])
        say(f"picture: {plot}")


def _names(engines: list[Path]) -> dict[str, Path]:
    """Return the bundles by the names of their folders, or by their paths where these are equal."""
    if len({bundle.resolve() for bundle in engines}) < len(engines):
        raise UsageError(f"expected different bundles, found {', '.join(map(str, engines))}")
    folders = [bundle.absolute().name for bundle in engines]
    names: dict[str, Path] = {}
    for place, (folder, bundle) in enumerate(zip(folders, engines, strict=True), 1):
        text = folder if folders.count(folder) == 1 else str(bundle)
        line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)[-100:]
        names[f"{line} {place}" if line in names else line] = bundle
    return names
