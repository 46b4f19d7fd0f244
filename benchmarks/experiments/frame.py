"""What experiments share: how they start, their images, and the record of what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lgvit_edge._support.outputs import write_json
from lgvit_edge._support.terminal import note, say
from lgvit_edge.benchmarks.measure import command_line
from lgvit_edge.bundle.manifest import Manifest, PassSpec
from lgvit_edge.cli.options import Command, Commands, check_outputs, exit_status
from lgvit_edge.errors import UsageError
from lgvit_edge.images.inputs import Inputs
from lgvit_edge.images.labelled import LabelledImage, evenly, find_images
from lgvit_edge.machine.cpu import load_average
from lgvit_edge.machine.environment import environment
from lgvit_edge.runtime import FixedExit, Session

JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Also write a record, with every raw value.")
]


def run_command(main: Callable[..., None]) -> None:
    """Runs an experiment as a command: its errors become one message and an exit status."""
    app = typer.Typer(cls=Commands, add_completion=False, pretty_exceptions_enable=False)
    app.command(cls=Command)(main)
    with exit_status():
        app()


def choose_images(data: Path, manifest: Manifest, count: int) -> Sequence[LabelledImage]:
    """Returns ``count`` images of a folder, spread evenly, with the bundle's class numbers."""
    names = manifest.labels
    images = find_images(data, num_classes=manifest.num_classes, names=names, note=note)
    return evenly(images, count)


def only_pass(manifest: Manifest) -> PassSpec:
    """Returns the pass of a bundle that has one.

    Raises:
        UsageError: it has several.
    """
    if len(manifest.passes) > 1:
        raise UsageError(f"expected a bundle of one pass, found one of {len(manifest.passes)}")
    return manifest.passes[0]


def chain_to(session: Session, images: Inputs) -> Callable[[int], object]:
    """Returns a function that runs the chain on prepared images up to an exit, 1-based."""

    def run(exit: int) -> object:
        session.policy = FixedExit(exit)
        return session.run(images)

    return run


class Record:
    """The record of an experiment, with the environment at its start and end."""

    def __init__(self, path: Path | None) -> None:
        """Read the environment; the record goes to ``path``, None writes none.

        Raises:
            UsageError: the file could not be written.
        """
        check_outputs({"--json": path})
        self._path, self.env = path, environment()

    def write(self, **values: Any) -> None:
        """Writes ``values``, with the environment and the command line.

        Raises:
            OSError: the file cannot be written.
        """
        if self._path is None:
            return
        env = self.env | {"load_average_end": load_average()}
        write_json(self._path, {"env": env, **values, "command": command_line()})
        say(f"record: {self._path}")
