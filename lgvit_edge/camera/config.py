"""Reads ``camera.toml``: what may stand in it, and on which line each value stands."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lgvit_edge._support.files import read_bytes
from lgvit_edge._support.optional import require
from lgvit_edge._support.text import escaped
from lgvit_edge.camera.sources.base import without_secrets
from lgvit_edge.camera.toml_lines import KeyPath, find_lines
from lgvit_edge.errors import UsageError

_LONGEST = 1 << 20  # bytes
_SHOWN = 60  # characters of a value, in a message
_CAMERAS = "camera"  # the table of the cameras' tables
_SECRET = re.compile(r"(?i)passw|passphrase|pwd|secret|token|credential|api_?key")
_KINDS = {
    str: 'a text in "quotes"',
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "a table",
}
_PLACE = re.compile(r" \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$")
# What Python's reader says, and what helps more.
_CURES = {
    "Invalid value": "invalid value; a text stands in quotes",
    "Cannot overwrite a value": "this key, or a part of it, is given twice",
}

# Names of options with the types that each takes: none for any. A ``float`` may be whole.
Keys = Mapping[str, Sequence[type]]


@dataclass(frozen=True)
class Config:
    """What a configuration file says; not yet whether its values make sense.

    Attributes:
        path: of the file, as the user named it.
        values: of the options at its top, by their names with ``_``.
        cameras: likewise of each table ``[camera.NAME]``, by the camera's name.
        lines: of each key, from 1; its path begins with ``camera`` and the name for a camera's.
    """

    path: Path
    values: Mapping[str, Any]
    cameras: Mapping[str, Mapping[str, Any]]
    lines: Mapping[KeyPath, int]

    def where(self, *keys: str | int) -> str:
        """Return where a value stands, to begin a message with: ``camera.toml, line 12, fps``.

        Of what the file does not give, the place of the table that lacks it.
        """
        return _where(self.path, self.lines, keys)

    def where_of(self, camera: str, key: str) -> str:
        """Return where an option of a camera stands."""
        return self.where(_CAMERAS, camera, key)


def read_config(path: Path, keys: Keys, camera_keys: Keys) -> Config:
    """Read a configuration file; an option may be written with ``-`` or ``_``.

    Args:
        path: of the file.
        keys: options at its top, with ``_``.
        camera_keys: options of a camera, with ``_``.

    Raises:
        UsageError: it cannot be read, is no TOML, or has keys that are unknown, twice there, of
            another type, or would hold a password. Names the line of each.
        MissingDependency: Python is older than 3.11, and tomli is not installed.
    """
    text = _read(path)
    document, lines = _parse(path, text)
    checked = _Checked(path, lines)
    cameras = document.pop(_CAMERAS, {})
    values = checked.table((), document, keys, camera_keys)
    tables = {}
    if not isinstance(cameras, dict):
        checked.fault((_CAMERAS,), "expected a table [camera.NAME] for each camera")
        cameras = {}
    for name, table in cameras.items():
        if isinstance(table, dict):
            tables[name] = checked.table((_CAMERAS, name), table, camera_keys, keys)
        else:
            checked.fault(
                (_CAMERAS, name), "expected a table [camera.NAME], with the name of the camera"
            )
    checked.end()
    return Config(path, values, tables, checked.lines)


class _Checked:
    """Collects what is wrong, to say it all at once, and the lines by the names with ``_``."""

    def __init__(self, path: Path, lines: dict[KeyPath, int]) -> None:
        self._path, self._written = path, lines
        self.lines = dict(lines)
        self._faults: list[tuple[int, str]] = []

    def table(
        self, place: KeyPath, table: Mapping[str, Any], known: Keys, elsewhere: Keys
    ) -> dict[str, Any]:
        """Return the options of a table by their names with ``_``; note what is wrong."""
        values: dict[str, Any] = {}
        given: dict[str, str] = {}
        for key, value in table.items():
            name, path = key.replace("-", "_"), (*place, key)
            if name in values:
                first = self._written[(*place, given[name])]
                self.fault(path, f"is given twice, first on line {first}")
                continue
            values[name], given[name] = value, key
            if name != key:
                self._rename(path, (*place, name))
            if name not in known:
                self.fault(path, _unknown(name, place, known, elsewhere))
            elif not _fits(value, known[name]):
                kinds = " or ".join(_KINDS[kind] for kind in known[name])
                self.fault(path, f"must be {kinds}, found {_shown(value)}")
        return values

    def fault(self, path: KeyPath, text: str) -> None:
        line = self._written.get(path, 1)
        self._faults.append((line, f"{_where(self._path, self._written, path)}: {text}"))

    def end(self) -> None:
        """Raise what was noted, in the order of the lines."""
        if self._faults:
            raise UsageError("\n".join(text for _, text in sorted(self._faults)))

    def _rename(self, old: KeyPath, new: KeyPath) -> None:
        for path, line in self._written.items():
            if path[: len(old)] == old:
                self.lines[new + path[len(old) :]] = line


def _unknown(name: str, place: KeyPath, known: Keys, elsewhere: Keys) -> str:
    if _SECRET.search(name):
        return (
            "passwords and tokens do not belong in a file that is copied and shown; give them in "
            "the environment"
        )
    if name in elsewhere:
        if place:
            return "is an option of all cameras; write it above the first [table]"
        return f"is an option of one camera; write it under [{_CAMERAS}.NAME]"
    near = difflib.get_close_matches(name, known, 1)
    if near:
        return f"unknown option; did you mean {near[0]}?"
    return f"unknown option; expected one of: {', '.join(sorted(known))}"


def _fits(value: object, kinds: Sequence[type]) -> bool:
    if not kinds:
        return True
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, int) and float in kinds:
        return True
    return isinstance(value, tuple(kinds))


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, dict)):
        return _KINDS[type(value)]
    if not isinstance(value, (str, int, float)):
        return f"the date or time {value}"
    text = without_secrets(repr(value))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _where(path: Path, lines: Mapping[KeyPath, int], keys: KeyPath) -> str:
    line = next((lines[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in lines), None)
    parts = [str(path)]
    if line is not None:
        parts.append(f"line {line}")
    if keys:
        parts.append(".".join(map(_as_written, keys)))
    return escaped(", ".join(parts)).replace("\n", "\\n")


def _as_written(key: str | int) -> str:
    text = str(key)
    return text if re.fullmatch(r"[\w-]+", text) else f'"{text}"'


def _read(path: Path) -> str:
    try:
        data = read_bytes(path, _LONGEST)
    except OSError as error:
        raise UsageError(f"cannot read the configuration {path}: {error.strerror}") from None
    try:
        return data.decode("utf-8-sig")  # some editors put a mark at the beginning
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(
            f"{path}, line {line}: expected UTF-8, found other bytes; save the file as UTF-8"
        ) from None


def _parse(path: Path, text: str) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    reader = require("tomllib" if sys.version_info >= (3, 11) else "tomli", extra="camera")
    try:
        return reader.loads(text), find_lines(text, reader.loads)
    except RecursionError:
        raise UsageError(f"{path}: brackets stand in brackets too often") from None
    except ValueError as error:  # also of a number that is too long
        said = str(error)
        place = _PLACE.search(said)
        if place is None:
            raise UsageError(f"{path}: no valid TOML: {escaped(said)}") from None
        line = place["line"] or str(text.rstrip("\r\n").count("\n") + 1)
        column = f", column {place['column']}" if place["column"] else ""
        what = said[: place.start()].replace("Can not", "Cannot")  # of older versions
        what = _CURES.get(what, what[:1].lower() + what[1:])
        raise UsageError(f"{path}, line {line}{column}: {escaped(what)}") from None
