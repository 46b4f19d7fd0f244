"""The ``compare`` command: bench records or bundles side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lgvit_edge._support.terminal import console
from lgvit_edge.cli.options import (
    AsJson,
)
from lgvit_edge.errors import DataError

if TYPE_CHECKING:
    pass


def compare(
    records: Annotated[
        list[Path], typer.Argument(help="What `bench --json` wrote, or bundles; the first leads.")
    ],
    force: Annotated[
        bool, typer.Option(help="Compare what was measured under other conditions, too.")
    ] = False,
    fail_if_slower: Annotated[
        str | None,
        typer.Option(help="5%: exit status 1 when one is slower than the first by more."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put bench records, or bundles' operating points, side by side."""
    from lgvit_edge.benchmarks.compare import compare_records, parse_share, print_comparison

    limit = None if fail_if_slower is None else parse_share(fail_if_slower)
    found = compare_records(records, force=force)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        print_comparison(found, console)
    if limit is not None:
        slower = [row for row in found["rows"][1:] if row["time"] > 1 + limit]
        if slower:
            worst = max(slower, key=lambda row: float(row["time"]))
            raise DataError(
                f"{worst['name']} takes {worst['time']:.3f} of the time of "
                f"{found['rows'][0]['name']}, allowed: {1 + limit:.3f}"
            )
