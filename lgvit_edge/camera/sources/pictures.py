"""Reads a folder of images, or a single one."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.camera.sources.base import Source, SourceKind
from lgvit_edge.errors import SourceError, UsageError
from lgvit_edge.images.folders import SUFFIXES, find_files
from lgvit_edge.images.preprocess import load_rgb

_FPS = 10.0  # a folder has no pace of its own


class Pictures(Source):
    """The images of a folder, those in folders inside included, sorted as people count."""

    fps = _FPS
    mixed = True

    def __init__(self, address: str, timeout: float) -> None:
        """List the images; raises as ``SourceKind.open``."""
        self._paths = _images(Path(address))
        if not self._paths:
            raise SourceError(f"{address} holds no images")
        self._next = 0

    def read(self) -> NDArray[np.uint8] | None:
        """Return the next image; raises as ``Source.read``."""
        if self._next == len(self._paths):
            return None
        self.position = self._next / _FPS
        self._next += 1
        return load_rgb(self._paths[self._next - 1])


def _images(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place]
    return sorted(find_files(place).images, key=_order)


def _order(path: Path) -> list[tuple[int, str]]:
    """Sort ``9.png`` before ``10.png``: digits as one number."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), part) if i % 2 else (-1, part) for i, part in enumerate(parts)]


def _check(address: str) -> None:
    place = Path(address)
    if not place.exists():
        raise UsageError(f"no such file or folder: {address}")
    if not _images(place):
        raise UsageError(
            f"{address} holds no images; expected files such as .jpg and .png, in it or in folders "
            "inside"
        )


PICTURES = SourceKind(
    "pictures",
    "photos/",
    "a folder of images, or one image",
    live=False,
    matches=lambda address: (
        "://" not in address
        and (Path(address).is_dir() or address.endswith("/") or _is_image(address))
    ),
    open=Pictures,
    check=_check,
)


def _is_image(address: str) -> bool:
    return Path(address).suffix.lower() in SUFFIXES
