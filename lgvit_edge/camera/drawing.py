"""Draws answers on pictures, and encodes pictures for browsers."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.optional import require
from lgvit_edge._support.text import escaped
from lgvit_edge.camera.shot import Answer

Image = NDArray[np.uint8]

_SURE, _UNSURE = (46, 204, 113), (255, 176, 32)  # RGB
_INK = (16, 16, 16)
_LONGEST = 80  # characters of a caption
# The first that has all letters of a text is taken: Pillow's own has few, others may be installed.
_FONTS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc"),
    *("NotoSansArabic-Regular.ttf", "NotoSansDevanagari-Regular.ttf", "unifont.otf"),
)
_IN_NO_FONT = "\U0010fffe"


def draw(image: Image, answers: Sequence[Answer]) -> Image:
    """Return a copy of a picture with each answer written on it, and regions framed.

    Args:
        image: ``[H, W, 3] uint8`` RGB.
        answers: of this picture; letters that no installed font has become boxes.
    """
    drawn = image.copy()
    height, width = drawn.shape[:2]
    size = max(10, min(32, min(height, width) // 20))
    below = 0  # of captions of the whole frame, which stand one below the other
    for answer in answers:
        color = _UNSURE if answer.unsure else _SURE
        left, top, wide, high = answer.box
        if answer.region is None:
            left, top = 0, below
            below += size + size // 2
        else:
            _frame(drawn, (left, top, left + wide, top + high), color, max(1, size // 8))
        # In parts, which come again: writing a text takes longer than all the rest.
        bars = [_bar(text, size, color) for text in _caption(answer)]
        _put(drawn, np.concatenate(bars, 1), left, top)
    return drawn


def jpeg(image: Image, max_side: int = 960, quality: int = 75) -> bytes:
    """Return a picture as JPEG, made smaller where its longer side exceeds ``max_side`` pixels.

    Args:
        image: ``[H, W, 3] uint8`` RGB.
        max_side: in pixels.
        quality: 1 to 100.

    Raises:
        MissingDependency: OpenCV is not installed.
        ValueError: the picture cannot be encoded: JPEG takes at most 65,500 pixels a side.
    """
    return encoded(smaller(image, max_side), ".jpg", quality)


def smaller(image: Image, side: int) -> Image:
    """Return a picture of at most ``side`` pixels a side, ``[h, w, 3] uint8``.

    It is halved, which OpenCV does several times faster than any other averaging, and less than
    halved by interpolation.
    """
    cv2 = require("cv2", extra="camera")
    while max(image.shape[:2]) >= 2 * side and min(image.shape[:2]) > 1:
        height, width = image.shape[:2]
        image = cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    if (longer := max(image.shape[:2])) > side:
        height, width = (max(1, each * side // longer) for each in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return image


def encoded(image: Image, suffix: str, quality: int) -> bytes:
    """Return a picture, ``[H, W, 3] uint8`` RGB, as ``.jpg`` or ``.png``; raises as ``jpeg``."""
    cv2 = require("cv2", extra="camera")
    if not image.size:
        raise ValueError(f"a picture of {image.shape} cannot be encoded: it is empty")
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix == ".jpg" else []
    try:
        done, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    except cv2.error as error:
        raise ValueError(f"a picture of {image.shape} cannot be encoded: {error}") from None
    if not done:
        raise ValueError(f"a picture of {image.shape} cannot be encoded as {suffix}")
    return bytes(data)


def _caption(answer: Answer) -> tuple[str, str, str]:
    region = "" if answer.region is None else f"{answer.region}: "
    said = f"unsure ({answer.guess})" if answer.unsure else answer.guess
    names = " ".join(escaped(f"{region}{said}").split())
    if len(names) > _LONGEST:
        names = names[: _LONGEST - 1] + "…"
    return names, answer.result.measure.text(answer.confidence), f"exit {answer.result.exit}"


def _frame(image: Image, box: tuple[int, int, int, int], color: Any, line: int) -> None:
    left, top, right, bottom = (max(0, side) for side in box)
    image[top : top + line, left:right] = color
    image[max(top, bottom - line) : bottom, left:right] = color
    image[top:bottom, left : left + line] = color
    image[top:bottom, max(left, right - line) : right] = color


def _put(image: Image, bar: Image, left: int, top: int) -> None:
    """Put a bar on a picture, moved so that it lies in it, cut where it is larger."""
    height, width = image.shape[:2]
    left = max(0, min(left, width - bar.shape[1]))
    top = max(0, min(top, height - bar.shape[0]))
    bar = bar[: height - top, : width - left]
    image[top : top + bar.shape[0], left : left + bar.shape[1]] = bar


@lru_cache(maxsize=512)  # of at most some 100 KB each
def _bar(text: str, size: int, color: tuple[int, int, int]) -> Image:
    """Return a text on a bar of its colour, ``[h, w, 3] uint8``."""
    from PIL import Image as pillow
    from PIL import ImageDraw

    font = _font(frozenset(text), size)
    try:
        width = int(font.getlength(text)) + size // 2
        bar = pillow.new("RGB", (width, size + size // 2), color)
        ImageDraw.Draw(bar).text((size // 4, size // 6), text, _INK, font)
    except (UnicodeError, OSError, ValueError):  # a font of ASCII alone, or a letter it fails at
        return _bar(text.encode("ascii", "replace").decode(), size, color)
    return np.array(bar)


@lru_cache(maxsize=256)
def _font(letters: frozenset[str], size: int) -> Any:
    """Return the first font that has all these letters, or most of them."""
    fonts = _fonts(size)
    if len(fonts) == 1:
        return fonts[0]

    def missing(font: Any) -> int:
        box = bytes(font.getmask(_IN_NO_FONT))
        return sum(not c.isspace() and bytes(font.getmask(c)) == box for c in letters)

    return min(fonts, key=missing)


@lru_cache(maxsize=8)
def _fonts(size: int) -> list[Any]:
    from PIL import ImageFont

    found: list[Any] = [ImageFont.load_default(size)]
    for name in _FONTS:
        with contextlib.suppress(OSError, ImportError):  # not installed, or no FreeType
            found.append(ImageFont.truetype(name, size))
    return found
