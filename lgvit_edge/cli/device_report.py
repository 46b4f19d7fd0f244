"""The ``device-report`` command: measures a device from end to end, into one archive."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Option

from lgvit_edge._support.outputs import check_file
from lgvit_edge._support.terminal import console, note, progress_bar, say, table
from lgvit_edge.cli.options import Backend, Device, Engines, check_outputs
from lgvit_edge.errors import BackendError


def device_report(
    engines: Engines,
    out: Annotated[Path, Option(help="Archive to write.")] = Path("report.zip"),
    backend: Backend = "auto",
    device: Device = None,
    minutes: Annotated[
        float, Option(help="Minutes for all steps; the one that runs at their end is stopped.")
    ] = 15.0,
    soak_minutes: Annotated[
        float,
        Option(
            help="Minutes of the last step, which predicts without a pause and watches memory and "
            "latency."
        ),
    ] = 3.0,
) -> None:
    """Measure this device from end to end, and pack the figures into one archive to send.

    Builds engines if none run here, checks every segment at every batch size, measures latency,
    energy, layers and the ways of running, and predicts for some minutes. The archive holds no
    image and no weight; names of persons, machines and folders are replaced where they are known.
    If it is interrupted, the same command goes on from there.
    """
    from lgvit_edge.benchmarks.device import Options, device_report
    from lgvit_edge.benchmarks.measure import command_line

    check_outputs({}, {"--out": out}, check=partial(check_file, streams=False))
    options = Options(backend, device, minutes, soak_minutes)
    with progress_bar("report") as progress:
        outcomes = device_report(engines, out, options, progress=progress, note=note)
    rows = table("step", "", "", numbers=("seconds",))
    for outcome in outcomes:
        rows.add_row(outcome.name, outcome.state, outcome.why, f"{outcome.seconds:.1f}")
    console.print(rows)
    say(f"{out}: begin with summary.md in it; look through it before you send it")
    if failed := [outcome.name for outcome in outcomes if outcome.state == "failed"]:
        raise BackendError(
            f"failed: {', '.join(failed)}; the archive says why. Try these again: {command_line()}"
        )
