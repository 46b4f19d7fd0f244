"""What experiments share: how they start, and the record of what was measured where and how."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from lgvit_edge._support.files import write_json
from lgvit_edge._support.terminal import say
from lgvit_edge.benchmarks.measure import command_line
from lgvit_edge.cli.options import Commands, check_folders, exit_status
from lgvit_edge.machine.cpu import load_average
from lgvit_edge.machine.environment import environment

JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Also write a record, with every raw value.")
]


def run_command(main: Callable[..., None]) -> None:
    """Run an experiment as the commands run: its errors are one message and an exit status."""
    app = typer.Typer(cls=Commands, add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    with exit_status():
        app()


class Record:
    """The record of an experiment; the environment is noted when it begins and when it ends."""

    def __init__(self, path: Path | None) -> None:
        """Note where it begins.

        Args:
            path: where to write the record; None writes none.

        Raises:
            UsageError: the file could not be written.
        """
        check_folders({"--json": path})
        self._path, self.env = path, environment()

    def write(self, **values: Any) -> None:
        """Write what was measured, with the environment and the command line.

        Raises:
            OSError: the file cannot be written.
        """
        if self._path is None:
            return
        env = self.env | {"load_average_end": load_average()}
        write_json(self._path, {"env": env, **values, "command": command_line()})
        say(f"record: {self._path}")
