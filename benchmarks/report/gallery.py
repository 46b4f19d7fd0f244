"""Picks images to look at: the easiest and hardest of each exit, and confident mistakes."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lgvit_edge.errors import DataError
from lgvit_edge.images.labelled import LabelledImage
from lgvit_edge.images.preprocess import load_rgb
from lgvit_edge.runtime import Result

_SIDE = 112  # pixels of a thumbnail's longer side
_PER_EXIT = 4  # most confident, and as many least confident
_MISTAKES = 12


@dataclass(frozen=True)
class Picture:
    """Holds one image of the gallery."""

    source: str  # the thumbnail, as a ``data:`` address
    answer: str  # the class that the chain gave
    truth: str | None  # the class of the label; None without one
    right: bool | None  # whether the two are the same; None without a label
    confidence: str
    exit: int


class Gallery:
    """Collects the images of a bench run and picks some of them."""

    def __init__(self, names: tuple[str, ...]) -> None:
        """``names``: of the classes; empty if there are none."""
        self.names = names
        self.seen: list[tuple[LabelledImage, Result]] = []

    def __call__(self, image: LabelledImage, result: Result) -> None:
        """Adds an image and its result."""
        self.seen.append((image, result))

    def exits(self) -> list[tuple[int, list[Picture], list[Picture]]]:
        """Returns, by exit, its number, and the most and least confident images that left there."""
        rows = []
        for exit in sorted({result.exit for _, result in self.seen}):
            pairs = [pair for pair in self.seen if pair[1].exit == exit]
            pairs.sort(key=lambda pair: -pair[1].sureness)
            # With few images, none is in both groups.
            count = min(_PER_EXIT, max(1, len(pairs) // 2))
            last = pairs[count:][-count:][::-1]
            rows.append((exit, self._pictures(pairs[:count]), self._pictures(last)))
        return rows

    def mistakes(self) -> list[Picture]:
        """Returns wrong answers, the most confident first; none without labels."""
        wrong = [
            (image, result)
            for image, result in self.seen
            if image.class_index is not None and result.class_index != image.class_index
        ]
        wrong.sort(key=lambda pair: -pair[1].sureness)
        return self._pictures(wrong[:_MISTAKES])

    def _pictures(self, pairs: list[tuple[LabelledImage, Result]]) -> list[Picture]:
        pictures = []
        for image, result in pairs:
            try:
                source = thumbnail(image.path)
            except DataError:
                continue  # the file was removed since
            truth, right, index = None, None, image.class_index
            if index is not None:
                truth = self.names[index] if self.names else str(index)
                right = result.class_index == index
            about = (result.label, truth, right, result.confidence_text, result.exit)
            pictures.append(Picture(source, *about))
        return pictures


def thumbnail(path: Path) -> str:
    """Returns a small copy of an image file, as a ``data:`` address.

    Raises:
        DataError: it cannot be read.
    """
    return inlined(Image.fromarray(load_rgb(path)))


def inlined(image: Image.Image) -> str:
    """Returns a small copy of an image, as a ``data:`` address; the image becomes small itself."""
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
