"""Reads text files with a name per line, as editors and spreadsheets write them."""

from __future__ import annotations

from pathlib import Path

from lgvit_edge._support.files import MAX_TEXT, read_bytes
from lgvit_edge.errors import DataError


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, without their ends and without empty lines at its end.

    UTF-8 or UTF-16, with or without a byte order mark, and line ends of any system.

    Raises:
        DataError: it cannot be read, or has another encoding.
    """
    try:
        raw = read_bytes(path, MAX_TEXT)
        utf16 = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = raw.decode("utf-16" if utf16 else "utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read the list {path}: {reason}; expected text in UTF-8") from None
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


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
