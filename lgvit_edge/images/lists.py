"""Reads text files with a name per line, as editors and spreadsheets write them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from lgvit_edge._support.files import MAX_TEXT, reading
from lgvit_edge.errors import DataError

_MAX_LINE = 1 << 20


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, without their ends and without empty lines at its end.

    UTF-8 or UTF-16, with or without a byte order mark, and line ends of any system.

    Raises:
        DataError: it cannot be read, or has another encoding.
    """
    lines = list(each_line(path, limit=MAX_TEXT))
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def each_line(path: Path, *, limit: int | None = None) -> Iterator[str]:
    """Yield the lines of a text file of at most ``limit`` bytes, as ``read_lines`` reads them.

    The file is never in memory as a whole. Raises as ``read_lines`` does.
    """
    try:
        with reading(path, limit) as file:
            utf16 = file.read(2) in (b"\xff\xfe", b"\xfe\xff")
            file.seek(0)
            with io.TextIOWrapper(file, encoding="utf-16" if utf16 else "utf-8-sig") as text:
                while line := text.readline(_MAX_LINE + 1):
                    if len(line) > _MAX_LINE:
                        raise ValueError(f"a line is longer than {_MAX_LINE} characters")
                    yield line.removesuffix("\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read the list {path}: {reason}; expected text in UTF-8") from None


def read_names(path: Path, count: int, what: str) -> tuple[str, ...]:
    """Read ``count`` names, one per line; ``what`` says of what, for errors.

    Raises:
        DataError: the file cannot be read, has another number of lines, or one is empty.
    """
    names = tuple(line.strip() for line in read_lines(path))
    if len(names) != count:
        raise DataError(
            f"{path}: expected {count} {what}, one per line and class, found {len(names)}"
        )
    if "" in names:
        raise DataError(f"{path}: line {names.index('') + 1} is empty, expected one of the {what}")
    return names
