"""The files that answers end in, each described once: JSON lines and Parquet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lgvit_edge._support.optional import require
from lgvit_edge.errors import UsageError
from lgvit_edge.offline.job import Job
from lgvit_edge.offline.rows import COLUMNS, TIMES

# A line as it was written, and what it says
Lines = Iterable[tuple[bytes, dict[str, Any]]]
_ROWS = 16384  # of a row group: 2 MB or so


@dataclass(frozen=True)
class Format:
    """A kind of file for answers: what checks that it can be written, and what writes it.

    Attributes:
        check: raises ``MissingDependency``.
        write: takes a path, the lines of answers, and the record of their job.
    """

    check: Callable[[], object]
    write: Callable[[Path, Lines, Job], None]


def format_of(out: Path) -> Format:
    """Return the format of a file, by the end of its name.

    Raises:
        UsageError: it has none of the ends that there are.
        MissingDependency: what writes it is not installed.
    """
    if out.suffix not in FORMATS:
        raise UsageError(f"--out must end in {' or '.join(FORMATS)}, found {out.name!r}")
    found = FORMATS[out.suffix]
    found.check()
    return found


def _write_lines(path: Path, lines: Lines, job: Job) -> None:
    with path.open("wb") as file:
        file.writelines(line for line, _ in lines)


def _pyarrow() -> Any:
    require("pyarrow", extra="parquet")
    return require("pyarrow.parquet", extra="parquet")


def _write_parquet(path: Path, lines: Lines, job: Job) -> None:
    parquet, arrow = _pyarrow(), require("pyarrow", extra="parquet")
    columns = COLUMNS | (TIMES if job.times else {})
    fields = [
        (name, getattr(arrow, kind.replace("double", "float64"))())
        for name, kind in columns.items()
    ]
    schema = arrow.schema(fields, metadata={"lgvit_edge": json.dumps(job.about())})
    with path.open("wb") as file, parquet.ParquetWriter(file, schema) as writer:
        for rows in _groups(row for _, row in lines):
            writer.write_table(arrow.Table.from_pylist(rows, schema))


def _groups(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while group := list(islice(rows, _ROWS)):
        yield group


FORMATS = {
    ".jsonl": Format(lambda: None, _write_lines),
    ".parquet": Format(_pyarrow, _write_parquet),
}
