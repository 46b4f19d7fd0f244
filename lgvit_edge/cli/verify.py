"""The ``verify`` command: runs a bundle's samples in a process with limits."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from typer import Argument, Option

from lgvit_edge._support.terminal import plain
from lgvit_edge.cli.options import AsJson, show


def verify(
    bundle: Annotated[Path, Argument(help="Bundle folder, perhaps of somebody you do not know.")],
    backend: Annotated[
        str, Option(help="Library that runs it: onnxruntime or openvino.")
    ] = "onnxruntime",
    memory_mb: Annotated[
        int | None,
        Option(
            min=1,
            help="Memory it may take, in MB. Default: 2048 and 4 times the bundle's size, at most "
            "3/4 of all memory.",
        ),
    ] = None,
    seconds: Annotated[float, Option(help="Time it may take, in seconds.")] = 120.0,
    as_json: AsJson = False,
) -> None:
    """Run a bundle's samples in a process with limits, and compare them with PyTorch's logits."""
    from lgvit_edge.runtime.verification import verify as run

    result = run(bundle, backend=backend, memory_mb=memory_mb, seconds=seconds)
    if as_json or result.outcome == "good":
        show(asdict(result), as_json, print_verified)
    result.check()


def print_verified(result: dict[str, Any], console: Console) -> None:
    """Print that a bundle is good."""
    console.print(
        plain(
            f"{result['bundle']}: its graphs are such as lgvit-edge exports, and all of them gave "
            f"PyTorch's logits on {result['backend']}: max |difference| "
            f"{result['max_difference']:.2g}, tolerance {result['tolerance']:g} "
            f"({result['seconds']} s, {result['peak_mb']} MB)"
        ),
        soft_wrap=True,
    )
