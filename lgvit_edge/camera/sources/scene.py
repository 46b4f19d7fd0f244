"""A scene for trying things out without a camera: handwritten digits that pass by on a belt."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.camera.settings import Region
from lgvit_edge.camera.sources.base import Source, SourceKind
from lgvit_edge.errors import UsageError

PREFIX = "scene:"
_FPS = 15.0
_WIDTH, _HEIGHT, _SIDE = 480, 240, 160  # pixels of the picture, and of a digit
_STEP, _REST = 0.8, 1.6  # seconds in which a digit moves to its next place, and stays there
_BELT, _NOISE = 10, 6  # grey levels: of the belt, and of the camera's noise
# Where a digit rests, and is to be read.
WINDOW = Region((_WIDTH - _SIDE) // 2, (_HEIGHT - _SIDE) // 2, _SIDE, _SIDE)


class Scene(Source):
    """Shows the pictures of a folder one after the other: each comes, rests in the middle, goes."""

    fps = _FPS

    def __init__(self, folder: Path) -> None:
        """Read the pictures of the demo's folder; raises ``UsageError`` where there are none."""
        from PIL import Image

        files = _pictures(folder)
        self._random = np.random.default_rng(0)
        self._random.shuffle(files)
        self._digits = [
            np.asarray(Image.open(file).convert("L").resize((_SIDE, _SIDE))) for file in files[:200]
        ]
        self._start = time.monotonic()
        self._number = 0

    def read(self) -> NDArray[np.uint8]:
        """Return the picture of this moment, ``[H, W, 3] uint8``, when its turn has come."""
        self._number += 1
        due = self._start + self._number / _FPS
        time.sleep(max(0.0, due - time.monotonic()))
        turn, within = divmod(due - self._start, _STEP + _REST)
        moved = min(within / _STEP, 1.0)
        moved = moved * moved * (3 - 2 * moved)  # it starts and stops gently
        picture = np.full((_HEIGHT, _WIDTH), _BELT, np.int16)
        first = int(turn)
        for place in range(-1, 3):  # digits follow each other at a distance of twice their side
            left = WINDOW.left + (place + 1 - moved) * 2 * _SIDE
            self._put(picture, self._digits[(first + place) % len(self._digits)], round(left))
        picture += self._random.integers(-_NOISE, _NOISE, picture.shape, np.int16)
        return np.repeat(picture.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)

    @staticmethod
    def _put(picture: NDArray[np.int16], digit: NDArray[np.uint8], left: int) -> None:
        top = int(WINDOW.top)
        begin, end = max(left, 0), min(left + _SIDE, _WIDTH)
        if begin < end:
            part = picture[top : top + _SIDE, begin:end]
            np.maximum(part, digit[:, begin - left : end - left], out=part)


def _pictures(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*/*.png"))
    if not files:
        raise UsageError(
            f"expected the demo's digits in {folder}, found no picture; run: lgvit-edge demo"
        )
    return files


KIND = SourceKind(
    name="scene",
    example="scene:out-demo/digits",
    help="the demo's digits on a belt, made up",
    live=True,
    matches=lambda address: address.startswith(PREFIX),
    open=lambda address, timeout: Scene(Path(address[len(PREFIX) :])),
    check=lambda address: (_pictures(Path(address[len(PREFIX) :])), None)[1],
)
