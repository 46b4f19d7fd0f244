"""The ``lgvit-edge`` command: parse, call, print. Heavy imports happen inside the commands."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from lgvit_edge import __version__, cli_build, cli_export, cli_run, cli_train, cli_tune
from lgvit_edge._terminal import console, progress_bar, say
from lgvit_edge.arguments import AsJson, Commands, exit_status

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
app.command()(cli_run.bench)
app.command()(cli_run.compare)
app.command()(cli_run.predict)


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
def doctor(
    engines: Annotated[
        Path | None, typer.Option(help="A bundle: measure anew which backend is fastest for it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what is installed, what can run here, what to install, and what backends were chosen."""
    from lgvit_edge.doctor import examine, print_examination

    found = examine(engines=engines)
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
