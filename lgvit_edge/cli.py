"""The ``lgvit-edge`` command: parse, call, print. Heavy imports happen inside the commands."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from lgvit_edge import __version__, cli_build, cli_export, cli_train, cli_tune
from lgvit_edge._terminal import console, progress_bar, say, table
from lgvit_edge.arguments import (
    AsJson,
    Backend,
    Commands,
    CudaGraphs,
    Device,
    Engines,
    PointName,
    PolicyText,
    Speculate,
    Threads,
    Wait,
    exit_status,
    parse_numbers,
)
from lgvit_edge.errors import DataError, UsageError

if TYPE_CHECKING:
    from lgvit_edge.runtime import TensorRTOptions

app = typer.Typer(
    cls=Commands,
    help="Early-exit Vision Transformers as engine chains for edge devices.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line. Exit status 2 for wrong use, 1 for failed work, 130 for Ctrl-C."""
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    if len(arguments) < len(sys.argv) - 1:  # --debug, wherever it was typed
        app(arguments)
    else:
        with exit_status():
            app(arguments)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    if version:
        say(f"lgvit-edge {__version__}")
        raise typer.Exit


app.command()(cli_train.train)
app.command()(cli_export.export)
app.command()(cli_build.build)
app.command()(cli_tune.tune)


@app.command()
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
    backend: Backend = None,
    wait: Wait = "hybrid",
    cuda_graphs: CudaGraphs = True,
    speculate: Speculate = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the record to this file.")
    ] = None,
) -> None:
    """Measure latency, MACs and accuracy against the baseline, interleaved in one run."""
    from lgvit_edge._files import write_json
    from lgvit_edge.benchmarks import measure_exits, measure_images, print_report
    from lgvit_edge.labelled import evenly, find_images
    from lgvit_edge.runtime import TensorRTOptions

    if (labels or samples) and data is None:
        raise UsageError("--labels and --samples need --data")
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise UsageError(f"--json: no such folder: {json_file.absolute().parent}")
    if mix and data is not None:
        raise UsageError("--mix is for runs without --data, where exits are forced")
    how = TensorRTOptions(wait=wait, cuda_graphs=cuda_graphs, speculate=speculate)
    with (
        _session(engines, policy, point, threads, device, backend, how) as session,
        progress_bar("measuring") as progress,
    ):
        if data is None:
            record = measure_exits(
                session, rounds=rounds, mix=parse_numbers(mix), progress=progress
            )
        else:
            found = find_images(
                data,
                num_classes=session.manifest.num_classes,
                names=session.manifest.labels,
                labels=labels,
            )
            record = measure_images(session, evenly(found, samples), progress=progress)
    print_report(record, console)
    if json_file is not None:
        write_json(json_file, record)
        say(f"record: {json_file}")


@app.command()
def predict(
    engines: Engines,
    images: Annotated[list[Path], typer.Argument(help="Image files or folders of them.")],
    policy: PolicyText = None,
    point: PointName = None,
    threads: Threads = None,
    device: Device = None,
    backend: Backend = None,
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
    with _session(engines, policy, point, threads, device, backend, how) as session:
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


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="A checkpoint or a bundle.")],
    as_json: AsJson = False,
) -> None:
    """Show blocks, exits, heads, MACs and parameters of a checkpoint or a bundle."""
    from lgvit_edge.info import inspect, print_info

    found = inspect(path)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        print_info(found, console)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show what is installed, what can run here and what to install."""
    from lgvit_edge.doctor import examine, print_examination

    found = examine()
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        print_examination(found, console)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the demo puts its files.")] = Path("out-demo"),
) -> None:
    """Train, export and bench a small LGViT on handwritten digits. No download; minutes."""
    from lgvit_edge.demo import run_demo

    run_demo(out, console, progress_bar)


@contextlib.contextmanager
def _session(
    engines: Path,
    policy: str | None,
    point: str | None,
    threads: int | None,
    device: str | None,
    backend: str | None,
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
        tensorrt=tensorrt,
    ) as session:
        yield session
