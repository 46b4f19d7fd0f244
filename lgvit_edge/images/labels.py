"""Reads label files: which class each image of a flat folder has."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Sequence
from pathlib import Path

from lgvit_edge.errors import DataError
from lgvit_edge.images.classes import refuse_twins
from lgvit_edge.images.lists import read_lines

# Words of a first line that names the columns
_FILE = frozenset({"file", "filename", "file_name", "image", "image_path", "img", "name", "path"})
_CLASS = frozenset({"category", "class", "class_id", "class_name", "label", "label_id", "target"})


def read_labels(
    data: Path, file: Path, num_classes: int, names: Sequence[str]
) -> list[tuple[Path, int]]:
    """Return the images that a label file lists, with their classes, in its order.

    Its lines are ``FILE CLASS``, with a tab, a comma or a space between them; both may hold
    spaces, and may stand in double quotes. FILE is a path in ``data``, CLASS an index or one of
    ``names``. A first line that names these columns is passed over.

    Raises:
        DataError: the file cannot be read, a line fits no image and class, or several, or two
            lines contradict each other.
    """
    found: list[tuple[Path, int]] = []
    classes: dict[Path, int] = {}
    first = True
    for number, line in enumerate(read_lines(file), 1):
        if not line.strip():
            continue
        pairs = _pairs(line.strip())
        is_header = first and any(
            a.lower() in _FILE and b.lower() in _CLASS and not os.path.isfile(data / a)
            for a, b in pairs
        )
        first = False
        if is_header:
            continue
        try:
            path, index = _read(data, line.strip(), pairs, num_classes, names)
        except DataError as error:
            raise DataError(f"{file}, line {number}: {error}") from None
        if classes.setdefault(path, index) != index:
            raise DataError(
                f"{file}, line {number}: {path.name} has class {index} here, and "
                f"{classes[path]} before"
            )
        found.append((path, index))
    if not found:
        raise DataError(f"{file} lists no images; expected lines FILE CLASS")
    return found


def _pairs(line: str) -> set[tuple[str, str]]:
    """Return every way to part a line in two; a tab, where there is one, is what parts it."""
    separators = "\t" if "\t" in line else ", "
    pairs = {
        (_bare(line[:place]), _bare(line[place + 1 :]))
        for place, character in enumerate(line)
        if character in separators
    }
    with contextlib.suppress(csv.Error):  # then it is no line of columns
        for separator in separators:
            columns = next(csv.reader([line], delimiter=separator, skipinitialspace=True))
            if len(columns) == 2:
                pairs.add((columns[0].strip(), columns[1].strip()))
    return pairs


def _bare(text: str) -> str:
    text = text.strip()
    quoted = len(text) > 1 and text[0] == text[-1] == '"'
    return text[1:-1].replace('""', '"') if quoted else text


def _read(
    data: Path, line: str, pairs: set[tuple[str, str]], num_classes: int, names: Sequence[str]
) -> tuple[Path, int]:
    readings = {
        (data / file, index): text
        for file, text in sorted(pairs)
        if file and (index := _class_of(text, num_classes, names)) is not None
    }
    if not readings:
        raise DataError(
            f"expected FILE CLASS with a class in 0..{num_classes - 1} or a name the model knows, "
            f"found {line[:80]!r}"
        )
    present = {found: text for found, text in readings.items() if os.path.isfile(found[0])}
    if not present:
        raise DataError(f"no such image: {next(iter(readings))[0]}")
    if len(present) > 1:
        files = " and ".join(repr(path.name) for path, _ in present)
        raise DataError(f"{line[:80]!r} fits {files}; put a tab between file and class")
    ((found, text),) = present.items()
    refuse_twins([text], names)
    return found


def _class_of(text: str, num_classes: int, names: Sequence[str]) -> int | None:
    if text in names:
        return names.index(text)
    is_index = text.isascii() and text.isdecimal() and len(text) < 20 and int(text) < num_classes
    return int(text) if is_index else None
