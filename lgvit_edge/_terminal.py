"""How tables look in a terminal, in one place."""

from __future__ import annotations

from rich.table import Table


def table(*headers: str, numbers: tuple[str, ...] = ()) -> Table:
    """A table that fits 80 columns: ``headers`` to the left, then ``numbers`` to the right."""
    made = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for header in headers:
        made.add_column(header)
    for header in numbers:
        made.add_column(header, justify="right", no_wrap=True)
    return made
