"""Images worth looking at: the easiest and the hardest of each exit, and the confident mistakes."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import Image

from lgvit_edge.errors import DataError
from lgvit_edge.images.labelled import LabelledImage
from lgvit_edge.images.preprocess import load_rgb
from lgvit_edge.runtime import Result

_SIDE = 112  # pixels of a thumbnail's longer side
_EACH = 4
_MISTAKES = 12


@dataclass(frozen=True)
class Picture:
    """One image of the gallery.

    Attributes:
        source: the thumbnail, as a ``data:`` address.
        answer: the class it was given.
        truth: its class; None without a label.
        right: whether the two are the same; None without a label.
        confidence: of the answer, as people read it.
        exit: taken.
    """

    source: str
    answer: str
    truth: str | None
    right: bool | None
    confidence: str
    exit: int


class Gallery:
    """Watches a bench run, and picks from it."""

    def __init__(self, names: tuple[str, ...]) -> None:
        """``names`` of the classes, or empty."""
        self.names = names
        self.seen: list[tuple[LabelledImage, Result]] = []

    def __call__(self, image: LabelledImage, result: Result) -> None:
        """See an image and what the chain said of it."""
        self.seen.append((image, result))

    def exits(self) -> list[tuple[int, list[Picture], list[Picture]]]:
        """By exit: its number, the most and the least confident images that left there."""
        found = []
        for exit in sorted({result.exit for _, result in self.seen}):
            mine = [pair for pair in self.seen if pair[1].exit == exit]
            mine.sort(key=lambda pair: -pair[1].sureness)
            # With few images none is shown as both.
            each = min(_EACH, max(1, len(mine) // 2))
            last = mine[each:][-each:][::-1]
            found.append((exit, self._pictures(mine[:each]), self._pictures(last)))
        return found

    def mistakes(self) -> list[Picture]:
        """Wrong answers, the most confident first; none without labels."""
        wrong = [
            (image, result)
            for image, result in self.seen
            if image.class_index is not None and result.class_index != image.class_index
        ]
        wrong.sort(key=lambda pair: -pair[1].sureness)
        return self._pictures(wrong[:_MISTAKES])

    def _pictures(self, pairs: list[tuple[LabelledImage, Result]]) -> list[Picture]:
        found = []
        for image, result in pairs:
            try:
                source = _thumbnail(image)
            except DataError:
                continue  # gone since it was measured
            index = image.class_index
            found.append(
                Picture(
                    source,
                    result.label,
                    None if index is None else self.names[index] if self.names else str(index),
                    None if index is None else result.class_index == index,
                    result.confidence_text,
                    result.exit,
                )
            )
        return found


def _thumbnail(image: LabelledImage) -> str:
    small = Image.fromarray(load_rgb(image.path))
    small.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
