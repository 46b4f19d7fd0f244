"""The ``compare`` command: shows bench records or bundles side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from lgvit_edge.cli.options import AsJson, show
from lgvit_edge.errors import DataError


def compare(
    records: Annotated[
        list[Path],
        Argument(help="Records of `bench --json`, or bundles; the first is the reference."),
    ],
    force: Annotated[bool, Option(help="Compare even if the measuring conditions differ.")] = False,
    fail_if_slower: Annotated[
        str | None,
        Option(help="Exit status 1 if one is slower than the first by more, such as 5%."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare bench records, or the operating points of bundles."""
    from lgvit_edge.benchmarks.compare import compare_records, parse_share, print_comparison

    limit = None if fail_if_slower is None else parse_share(fail_if_slower)
    comparison = compare_records(records, force=force)
    show(comparison, as_json, print_comparison)
    if limit is not None:
        slower = [row for row in comparison["rows"][1:] if row["time"] > 1 + limit]
        if slower:
            worst = max(slower, key=lambda row: float(row["time"]))
            raise DataError(
                f"{worst['name']} takes {worst['time']:.3f} of the time of "
                f"{comparison['rows'][0]['name']}, allowed: {1 + limit:.3f}"
            )
