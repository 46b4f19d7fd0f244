"""The ``triton`` command: writes a bundle as a model repository of NVIDIA Triton."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

from typer import Option

from lgvit_edge._support.terminal import console, say
from lgvit_edge.cli.options import (
    Backend,
    Device,
    Engines,
    PointName,
    PolicyText,
    Precision,
    Threads,
    check_outputs,
)


def triton(
    engines: Engines,
    out: Annotated[Path, Option(help="Folder for the model repository, new or empty.")] = Path(
        "models"
    ),
    name: Annotated[str, Option(help="Name of the model that clients call.")] = "lgvit",
    layout: Annotated[
        str,
        Option(
            help="session: one model that runs the whole bundle; segments: a model of Triton's own "
            "ONNX Runtime or TensorRT backend for each segment, and one that calls them until one "
            "is confident."
        ),
    ] = "session",
    policy: PolicyText = None,
    point: PointName = None,
    threads: Threads = None,
    device: Device = None,
    backend: Backend = "auto",
    precision: Precision = None,
    instances: Annotated[
        int, Option(min=1, help="Sessions that answer at once, each in a process of its own.")
    ] = 1,
    queue_delay_us: Annotated[
        int,
        Option(
            min=0,
            help="Microseconds that a request may wait in Triton for others to make a batch with.",
        ),
    ] = 2000,
) -> None:
    """Write a bundle as a model repository for NVIDIA Triton."""
    from lgvit_edge.serving.options import RunParameters
    from lgvit_edge.serving.repository import ServingOptions, check_place, write_repository

    run = RunParameters(
        backend=None if backend == "auto" else backend,
        threads=threads,
        device=device,
        precision=precision,
        point=point,
        policy=policy,
    )
    options = ServingOptions(name, layout, run, instances, queue_delay_us)
    check_outputs({}, {"--out": out}, check=check_place)
    models = write_repository(engines, out, options)
    others = f", which calls {', '.join(models[1:])}" if models[1:] else ""
    say(f"{out}: model {name}{others}", console)
    say(f"next: tritonserver --model-repository={quote(str(out.absolute()))}", console)
