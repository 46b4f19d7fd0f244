"""The ``build`` command: compiles a bundle's engines and runs them on its samples."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from lgvit_edge._support.finite_json import dumps
from lgvit_edge._support.terminal import console, note, progress_bar, say, table
from lgvit_edge.cli.options import AsJson

if TYPE_CHECKING:
    from lgvit_edge.export.tensorrt.build import Built

Capabilities = Annotated[
    str | None,
    Option(
        "--capability",
        help="RTX: compute capabilities of the GPUs to compile for, such as 8.6,8.9. Default: 8.0 "
        "and newer.",
    ),
]
BuildDevice = Annotated[
    str | None,
    Option(help="GPU to compile and check on: cuda, or cuda:1 for the second. Default: cuda."),
]


def build(
    bundle: Annotated[Path, Argument(help="Bundle folder that `lgvit-edge export` wrote.")],
    builder: Annotated[
        str | None, Option(help="Compiler: tensorrt or tensorrt-rtx. Default: as the target needs.")
    ] = None,
    capability: Capabilities = None,
    workspace_mb: Annotated[
        int | None,
        Option(
            min=1,
            help="Largest scratch memory in MB; another limit compiles all engines anew. Default: "
            "on a Jetson, a quarter of free memory.",
        ),
    ] = None,
    opt_level: Annotated[
        int | None,
        Option(
            min=0,
            max=5,
            help="How hard TensorRT looks for fast kernels: 0 compiles fastest, 5 runs fastest. "
            "Default: TensorRT's own.",
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        Option(help="Largest allowed difference from PyTorch's logits. Default: the bundle's."),
    ] = None,
    cuda_graphs: Annotated[
        bool,
        Option(
            "--cuda-graphs/--no-cuda-graphs",
            help="Check the engines as sessions run them by default: replayed as CUDA graphs.",
        ),
    ] = True,
    device: BuildDevice = None,
    force: Annotated[bool, Option(help="Compile all engines, even current ones.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compile a bundle's TensorRT engines on the device that will run them (RTX: on any PC)."""
    from lgvit_edge.export import BuilderOptions, build_engines

    options = BuilderOptions(
        workspace=None if workspace_mb is None else workspace_mb << 20,
        optimization_level=opt_level,
        compute_capabilities=parse_capabilities(capability),
    )
    with progress_bar("compiling") as progress:
        built = build_engines(
            bundle,
            library=builder,
            options=options,
            force=force,
            tolerance=tolerance,
            cuda_graphs=cuda_graphs,
            device=device,
            progress=progress,
            note=note,
        )
    if as_json:
        record = dataclasses.asdict(built.build) | {
            "tag": built.build.tag,
            "compiled": built.compiled,
            "seconds": round(built.seconds, 2),
            "max_difference": built.max_difference,
            "not_run": built.not_run,
        }
        print(dumps(record))
    else:
        print_built(bundle, built, device)


def parse_capabilities(text: str | None) -> tuple[str, ...]:
    """Split ``8.6,8.9`` at the commas; the builder checks the values."""
    return () if text is None else tuple(part.strip() for part in text.split(","))


def print_built(bundle: Path, built: Built, device: str | None = None) -> None:
    """Print which engines of a bundle were compiled, and whether they were run."""
    record, bench = built.build, f"lgvit-edge bench --engines {quote(str(bundle))}"
    bench += f" --device {device}" if device else ""
    if not built.compiled:
        say(f"{built.folder}: all {len(record.engines)} engines are current; nothing to do")
    else:
        rows = table("engine", "", numbers=("MB", "seconds"))
        for name, engine in record.engines.items():
            state = "compiled" if name in built.compiled else "current"
            rows.add_row(name, state, f"{engine.bytes / 1e6:.1f}", f"{engine.seconds:.1f}")
        console.print(rows)
        say(
            f"{built.folder}: {len(built.compiled)} of {len(record.engines)} engines compiled in "
            f"{built.seconds:.1f} s with {record.library} {record.version}, {record.precision}"
        )
    for warning in record.warnings[:5]:
        say(f"warning from {record.library}: {warning}")
    if built.max_difference is not None:
        say(
            "verified on this GPU, segments and baseline, against PyTorch's samples: "
            f"max |difference| {built.max_difference:.2g}"
        )
        say(f"next: {bench}")
    else:
        say(f"not run: {built.not_run}; on the device that runs them: {bench} --backend tensorrt")
