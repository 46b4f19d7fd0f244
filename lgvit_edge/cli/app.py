"""The ``lgvit-edge`` command line. Commands import heavy packages only when they run."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated

import typer

from lgvit_edge import __version__
from lgvit_edge._support.terminal import say
from lgvit_edge.cli.bench import bench
from lgvit_edge.cli.build import build
from lgvit_edge.cli.bundle import commands as bundle
from lgvit_edge.cli.camera import camera
from lgvit_edge.cli.compare import compare
from lgvit_edge.cli.demo import demo
from lgvit_edge.cli.device_report import device_report
from lgvit_edge.cli.doctor import doctor
from lgvit_edge.cli.export import export
from lgvit_edge.cli.info import info
from lgvit_edge.cli.options import Command, Commands, exit_status
from lgvit_edge.cli.predict import predict
from lgvit_edge.cli.probe import probe
from lgvit_edge.cli.profile import profile
from lgvit_edge.cli.train import train
from lgvit_edge.cli.triton import triton
from lgvit_edge.cli.tune import tune
from lgvit_edge.cli.verify import verify

app = typer.Typer(
    cls=Commands,
    help="Early-exit Vision Transformers as engine chains for edge devices.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; exit with 2 after wrong use, 1 after failed work, 130 after Ctrl-C."""
    # Pillow's, about metadata: an image that it cannot read is an error, which is told.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    if len(arguments) < len(sys.argv) - 1:  # --debug, wherever it was typed
        app(arguments)
    else:
        with exit_status():
            app(arguments)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if version:
        say(f"lgvit-edge {__version__}")
        raise typer.Exit


# --help lists the commands in this order, the order of a user's work.
for command in (
    train,
    export,
    build,
    tune,
    bench,
    profile,
    probe,
    compare,
    predict,
    camera,
    triton,
    verify,
    bundle,
    info,
    doctor,
    device_report,
    demo,
):
    if isinstance(command, typer.Typer):
        app.add_typer(command, name="bundle")
    else:
        app.command(cls=Command)(command)
