"""Finds the line on which each key of a TOML document stands, which Python's reader leaves out."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

# Of a value: the names of the tables above it and its own; numbers count in lists, from 0.
KeyPath = tuple[str | int, ...]

_SPACE = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}(?!")'  # up to two quotes may stand before the last three
    r"|'''.*?'{3,5}(?!')"
    r'|"(?:\\.|[^"\\])*"'
    r"|'[^']*'",
    re.DOTALL,
)
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}\n#]+")


def find_lines(text: str, loads: Callable[[str], dict[str, Any]]) -> dict[KeyPath, int]:
    """Return the line of each key, table and item of a list, from 1, by its path.

    A table's line is that of its first mention. ``text`` is valid TOML: ``loads``, which reads
    TOML, has read it.
    """
    return _Finder(text, loads).find()


class _Finder:
    """Walks once through a document; ``_at`` is where it is."""

    def __init__(self, text: str, loads: Callable[[str], dict[str, Any]]) -> None:
        self._text, self._loads, self._at = text, loads, 0
        self._ends = [found.start() for found in re.finditer("\n", text)]
        self._lines: dict[KeyPath, int] = {}
        self._last: dict[KeyPath, int] = {}  # of a list that [[...]] makes, the newest item

    def find(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        while self._skip():
            start = self._at
            if self._text.startswith("[[", start):
                self._at += 2
                *above, name = self._key()
                path = (*self._resolved(above), name)
                self._last[path] = self._last.get(path, -1) + 1
                table = self._noted(start, (*path, self._last[path]))
                self._at += 2
            elif self._text[start] == "[":
                self._at += 1
                table = self._noted(start, self._resolved(self._key()))
                self._at += 1
            else:
                self._pair(table)
        return self._lines

    def _skip(self) -> bool:
        """Go over spaces, line ends and comments; return whether anything follows."""
        match = _SPACE.match(self._text, self._at)
        assert match is not None
        self._at = match.end()
        return self._at < len(self._text)

    def _noted(self, start: int, path: KeyPath) -> KeyPath:
        line = bisect_right(self._ends, start - 1) + 1
        for length in range(1, len(path) + 1):
            self._lines.setdefault(path[:length], line)
        return path

    def _resolved(self, names: list[str]) -> KeyPath:
        """Return the path of a table's names: under a list they mean its newest item."""
        path: KeyPath = ()
        for name in names:
            path = (*path, name)
            if path in self._last:
                path = (*path, self._last[path])
        return path

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        assert match is not None, "the text is no valid TOML"
        self._at = match.end()
        return match[0]

    def _key(self) -> list[str]:
        """Read a key, and the dots in it."""
        names = []
        while True:
            self._skip()
            if self._text[self._at] in "\"'":
                # What its escapes mean, the reader knows.
                names.append(str(self._loads(f"key = {self._take(_STRING)}")["key"]))
            else:
                names.append(self._take(_BARE))
            self._skip()
            if self._text[self._at] != ".":
                return names
            self._at += 1

    def _pair(self, table: KeyPath) -> None:
        start = self._at
        path = self._noted(start, (*table, *self._key()))
        self._at += 1  # the =
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        self._skip()
        first = self._text[self._at]
        if first in "\"'":
            self._take(_STRING)
        elif first in "[{":
            self._at += 1
            self._items(path, "]" if first == "[" else "}")
        else:
            self._take(_SCALAR)

    def _items(self, path: KeyPath, end: str) -> None:
        """Read what stands in brackets, up to the last one."""
        count = 0
        while self._skip() and self._text[self._at] != end:
            if self._text[self._at] == ",":
                self._at += 1
            elif end == "}":
                self._pair(path)
            else:
                self._value(self._noted(self._at, (*path, count)))
                count += 1
        self._at += 1
