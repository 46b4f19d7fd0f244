"""The images of a job in a fixed order: those of a folder, or those that a list names."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from lgvit_edge.errors import DataError
from lgvit_edge.images.folders import left_out, walk
from lgvit_edge.images.lists import each_line


class Listed(NamedTuple):
    """An image of a listing: what answers call it, and where it lies."""

    name: str
    path: str


class Listing:
    """Images in a fixed order, by paths relative to a folder; an image may be there repeatedly.

    Each takes as many bytes of memory as its path has, and eight more.

    Attributes:
        root: the folder, as an absolute path.
        sha256: a hash of the paths in their order.
    """

    def __init__(self, root: Path, paths: Iterable[bytes]) -> None:
        self.root = str(root)
        text, ends = bytearray(), array("Q")
        for path in paths:
            text += path
            ends.append(len(text))
        self._text, self._ends = bytes(text), ends
        digest = hashlib.sha256(self._text)
        digest.update(ends.tobytes())
        self.sha256 = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Listed:
        begin = self._ends[index - 1] if index else 0
        path = self._text[begin : self._ends[index]]
        # Names that are not UTF-8 have no place in JSON.
        name = path.decode("utf-8", "backslashreplace")
        return Listed(name, os.path.join(self.root, os.fsdecode(path)))


def list_images(data: Path, note: Callable[[str], None]) -> Listing:
    """List the images of a folder, however deep, or those that a text file names.

    A folder's are relative to it. A text file has a path in each line, absolute or relative to the
    file's folder; empty lines are passed over. ``note`` takes what people should know about files
    of the folder that are left out.

    Raises:
        DataError: there is no such folder or file, it cannot be read, or it holds no image.
    """
    if data.is_dir():
        root, others = data.absolute(), list[Path]()
        listing = Listing(root, _in_folder(root, others))
        for text in left_out(others):
            note(text)
        missing = f"{data} holds no images, nor do the folders in it"
    elif data.exists():
        listing = Listing(data.absolute().parent, _in_file(data))
        missing = f"{data} names no images; expected the path of one in each line"
    else:
        raise DataError(f"no such folder or list of images: {data}")
    if not len(listing):
        raise DataError(missing)
    return listing


def _in_folder(root: Path, others: list[Path]) -> Iterator[bytes]:
    beginning = len(os.path.join(os.fsencode(root), b""))
    for path, image in walk(root):
        if image:
            yield os.fsencode(path)[beginning:]
        else:
            others.append(path)


def _in_file(data: Path) -> Iterator[bytes]:
    for line in each_line(data):
        if line.strip():
            yield line.encode("utf-8", "surrogateescape")
