"""The ``tune`` command: searches for operating points and stores them in the bundle."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from lgvit_edge._support.optional import require
from lgvit_edge._support.outputs import check_file, is_stream, replacing, write_json
from lgvit_edge._support.terminal import console, note, progress_bar, say
from lgvit_edge.bundle.points import check_name
from lgvit_edge.cli.evidence import print_evidence, tell_unreadable
from lgvit_edge.cli.options import (
    Backend,
    Classes,
    Device,
    Engines,
    Labels,
    Precision,
    Samples,
    Threads,
    check_outputs,
    check_picture,
    labelled_images,
    telling,
)
from lgvit_edge.errors import DataError, UsageError

if TYPE_CHECKING:
    from lgvit_edge.images.labelled import LabelledImage
    from lgvit_edge.runtime import Session
    from lgvit_edge.tuning.record import Recording


def tune(
    engines: Engines,
    data: Annotated[
        Path | None, Option(help="Labelled images: one sub-folder per class, or a flat folder.")
    ] = None,
    labels: Labels = None,
    classes: Classes = None,
    report_data: Annotated[
        Path | None, Option(help="Other images to report results on. Default: a part of --data.")
    ] = None,
    report_labels: Annotated[
        Path | None, Option(help="Label file of a flat --report-data: lines FILE CLASS.")
    ] = None,
    max_drop: Annotated[
        float | None,
        Option(
            help="Goal: largest loss of accuracy against the baseline, which has no exits; 0.01 is "
            "one percentage point."
        ),
    ] = None,
    latency_ms: Annotated[
        float | None,
        Option(help="Goal: largest mean time per image in ms, from decoded frame to label."),
    ] = None,
    min_speedup: Annotated[
        float | None, Option(help="Goal: smallest mean speed-up over the baseline, such as 1.8.")
    ] = None,
    risk: Annotated[
        float | None,
        Option(
            help="Certify that at most this share of images is wrong with early exits but right "
            "with the baseline."
        ),
    ] = None,
    delta: Annotated[
        float | None,
        Option(help="With --risk: probability that the certificate is wrong. Default: 0.05."),
    ] = None,
    name: Annotated[
        str | None, Option(help="Name of the operating point. Default: named for the goal.")
    ] = None,
    samples: Samples = None,
    logits: Annotated[
        Path | None,
        Option(
            help="File that stores logits and times; without --data, they are read from it and no "
            "image is run. Default: BUNDLE.logits.npy beside the bundle."
        ),
    ] = None,
    trials: Annotated[int, Option(min=1, help="Optuna trials per policy.")] = 100,
    seed: Annotated[
        int, Option(min=0, max=2**32 - 1, help="Random seed of the split and the search.")
    ] = 0,
    threads: Threads = None,
    device: Device = None,
    backend: Backend = "auto",
    precision: Precision = None,
    plot: Annotated[
        Path | None, Option(help="Also plot accuracy over latency (.png, .svg, .pdf).")
    ] = None,
    json_file: Annotated[
        Path | None, Option("--json", help="Also write the full result to this file.")
    ] = None,
) -> None:
    """Find how sure exits must be for a goal, and store it in the bundle as an operating point.

    Times are measured on this machine, so run it on the device. Without a goal, the points fast,
    balanced and accurate are stored.
    """
    from lgvit_edge.bundle.directory import add_to_manifest, check_writable, open_bundle
    from lgvit_edge.bundle.inspection import evidence_records
    from lgvit_edge.runtime.backends.base import ChainOptions
    from lgvit_edge.tuning import Goal, TuneOptions, compare_precisions
    from lgvit_edge.tuning import tune as search
    from lgvit_edge.tuning.record import read
    from lgvit_edge.tuning.show import draw, print_tuned, to_record

    goal = Goal(max_drop, latency_ms, min_speedup)
    options = TuneOptions(goal, name, risk, 0.05 if delta is None else delta, trials, seed)
    if delta is not None and risk is None:
        raise UsageError("--delta needs --risk")
    if report_labels is not None and report_data is None:
        raise UsageError("--report-labels needs --report-data")
    if name is not None:
        try:
            check_name(name)
        except ValueError as error:
            raise UsageError(f"--name: {error}") from None
    if data is None and logits is None:
        raise UsageError("expected --data DIR, or --logits FILE of an earlier run")
    if data is None and (labels or samples):
        raise UsageError("--labels and --samples need --data")
    given = ((data, labels), (report_data, report_labels))
    if classes and all(folder is None or listed is not None for folder, listed in given):
        raise UsageError("--classes needs --data or --report-data with one sub-folder per class")
    require("optuna", extra="tune")  # before the long work
    check_picture(plot)
    bundle = open_bundle(engines)
    if len(bundle.manifest.segments) < 2:
        raise UsageError(f"{engines} has no exits: there is nothing to tune")
    check_writable(engines)
    home = engines.absolute()
    main = logits or home.with_name(f"{home.name}.logits.npy")
    other = main.with_name(f"{main.name.removesuffix('.npy')}.report.npy")
    check_outputs(
        {"--json": json_file, "--plot": plot},
        {
            "--logits": None if data is None else main,
            "--report-data": None if report_data is None else other,
        },
        check=functools.partial(check_file, streams=False),
    )
    report: Recording | None = None
    tell = telling(told := list[str]())
    if data is not None or report_data is not None:
        from lgvit_edge.runtime import Session
        from lgvit_edge.runtime.session import open_in_float32

        run: dict[str, Any] = dict(backend=backend, threads=threads, device=device)
        opened = (
            open_in_float32(engines, **run)  # what lower precisions are compared with
            if precision is None
            else Session.open(engines, precision=precision, **run)
        )
        with opened as session:
            if data is not None:
                listed = _labelled(session, data, labels, classes, samples, "--labels", tell)
                recording = _collect(session, listed, main)
            if report_data is not None:
                others = _labelled(
                    session, report_data, report_labels, classes, samples, "--report-labels", tell
                )
                report = _collect(session, others, other)
    if data is None:
        recording = read(main, bundle.manifest)
        if len(recording.missing):
            raise DataError(
                f"{main} holds {len(recording.usable)} of {len(recording.rows)} images, the run "
                "was interrupted: to continue it, add --data DIR"
            )
    if report is not None and report.about["images"] == recording.about["images"]:
        raise UsageError("--report-data holds the same images as --data")
    with progress_bar("searching") as progress:
        result = search(recording, bundle.manifest, options, report=report, progress=progress)
    add_to_manifest(engines, bundle.manifest.identity, result.points)
    print_tuned(result, engines, bundle.manifest, console)
    evidence: list[dict[str, Any]] = []
    record = to_record(result) | {"notes": told}
    streams = json_file is not None and is_stream(json_file)  # and takes one record alone
    if json_file is not None and not streams:
        write_json(json_file, record | {"evidence": evidence})
        say(f"record: {json_file}")
    if plot is not None:
        with replacing(plot) as partial:
            draw(result, partial, plot.suffix[1:])
        say(f"picture: {plot}")
    if data is not None and precision is None:  # last, because it takes long and may fail
        with progress_bar("all exits below float32") as progress:
            compare_precisions(engines, recording, listed, note=note, progress=progress, **run)
        evidence = evidence_records(open_bundle(engines, verify=False).manifest)
        print_evidence(evidence, console, ChainOptions(threads=threads, device=device))
    if json_file is not None and (evidence or streams):
        write_json(json_file, record | {"evidence": evidence})
        if streams:
            say(f"record: {json_file}")


def _labelled(
    session: Session,
    data: Path,
    labels: Path | None,
    classes: str | None,
    samples: int | None,
    option: str,
    tell: Callable[[str], None],
) -> Sequence[LabelledImage]:
    # One of --data and --report-data may have class folders, the other a label file.
    classes = classes if labels is None else None
    images = labelled_images(session.manifest, data, labels, classes, samples, tell)
    if any(image.class_index is None for image in images):
        raise DataError(
            f"{data}: images without classes tell nothing about accuracy: expected one sub-folder "
            f"per class, or {option} FILE with lines FILE CLASS"
        )
    return images


def _collect(session: Session, images: Sequence[LabelledImage], file: Path) -> Recording:
    from lgvit_edge.tuning import collect

    say(f"logits and times are stored in {file}; if interrupted, run the same command again")
    with progress_bar("all exits") as progress:
        recording = collect(session, images, file, progress=progress)
    tell_unreadable(recording, images)
    return recording
