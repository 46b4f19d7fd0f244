"""Draws relevance maps over their images: a row for each image, a column for each exit."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lgvit_edge._support.optional import require
from lgvit_edge.benchmarks.report.plots import lacking_letters
from lgvit_edge.errors import UsageError
from lgvit_edge.model.lgvit import LGViT
from lgvit_edge.probing.relevance import relevance, usual_method
from lgvit_edge.probing.ways import logits_at, way_to

MOST_ROWS = 64  # of one picture
_COLOURS = "inferno"  # brightness rises with relevance, so that no colour need be told apart
# Inches: a map with its gaps, a line of text, the colour bar with its words.
_CELL, _GAP, _LINE, _BAR = 1.9, 0.04, 0.15, 0.55
_LONGEST = 22  # characters of a class name under a map


@dataclass(frozen=True)
class Column:
    """What one exit sees in each of B images.

    Attributes:
        title: what exit it is.
        block: the block that it follows, by which columns of two models are put side by side.
        maps: relevance, ``[B, Hp, Wp]``.
        answers: the class that the exit answers, ``[B]``.
        confidences: how sure it is of that, ``[B]``, 0..1.
        asked: the class whose relevance is shown, ``[B]``; None: the answer.
    """

    title: str
    block: int
    maps: NDArray[np.float32]
    answers: NDArray[np.int64]
    confidences: NDArray[np.float32]
    asked: NDArray[np.int64] | None = None


def columns(
    model: LGViT,
    images: Tensor,
    *,
    exits: Sequence[int] | None = None,
    method: str | None = None,
    classes: Tensor | None = None,
    name: str = "",
) -> list[Column]:
    """Returns a column for each exit of a model, the final classifier last.

    For two models side by side: ``sorted(columns(a, ...) + columns(b, ...), key=lambda c:
    c.block)``.

    Args:
        model: the model.
        images: normalised ``[B, 3, H, W] float32``.
        exits: which exits, 1..M + 1; None: all.
        method: of ``relevance``; None: ``usual_method`` of each exit.
        classes: whose relevance, ``[B]``; None: of what each exit answers.
        name: of the model, before its exits.

    Raises:
        LGViTEdgeError: those of ``relevance``.
    """
    every = range(1, len(model.heads) + 2)
    return [
        column(model, images, exit, method=method, classes=classes, name=name)
        for exit in (every if exits is None else exits)
    ]


def column(
    model: LGViT,
    images: Tensor,
    exit: int,
    *,
    method: str | None = None,
    classes: Tensor | None = None,
    name: str = "",
) -> Column:
    """Returns the column of one exit; arguments and errors are those of ``columns``."""
    way, chosen = way_to(model, exit), method or usual_method(model, exit)
    confidences, answers = logits_at(model, images, exit).softmax(-1).max(-1)
    shown = answers if classes is None else classes
    maps = relevance(model, images, exit=exit, classes=shown, method=chosen)
    title = f"{name} {way.kind}, block {way.last_block}\n{chosen}".strip()
    asked = None if classes is None else classes.numpy()
    parts = (maps.numpy(), answers.numpy(), confidences.numpy(), asked)
    return Column(title, way.last_block, *parts)


def draw_grid(
    frames: NDArray[np.uint8],
    shown: Sequence[Column],
    *,
    names: Sequence[str] = (),
    labels: Sequence[int | None] | None = None,
) -> bytes:
    """Returns a picture (PNG) of images, each with the maps of its columns over it.

    Each map has its own scale, up to its most relevant patch. Below it stand the answer, how sure
    the exit is, and whether it is right.

    Args:
        frames: the images as the network sees them, ``[B, H, W, 3] uint8`` RGB.
        shown: the columns.
        names: of the classes; empty: their numbers.
        labels: the class of each image, None if unknown.

    Raises:
        MissingDependency: matplotlib is not installed.
        UsageError: there is nothing to draw, or too much for one picture.
    """
    _check(frames, shown, labels)
    figures: Any = require("matplotlib.figure", extra="report")
    colours = scale()
    truths = [None] * len(frames) if labels is None else labels
    below = [
        [
            "" if truth is None else short_name(truth, names),
            *(caption(column, row, names, truth) for column in shown),
        ]
        for row, truth in enumerate(truths)
    ]
    above = ["image", *(column.title for column in shown)]
    # Inches: text stands in rows and at the top, the bar of colours at the bottom.
    caption_height, title_height = (
        _LINE * max(text.count("\n") + 1 for text in texts) + 0.1
        for texts in (itertools.chain(*below), above)
    )
    row_height = _CELL + caption_height
    width, height = _CELL * len(above), row_height * len(frames) + title_height + _BAR
    figure = figures.Figure(figsize=(width, height))
    plain: Any = {"parse_math": False, "fontsize": 8}  # a $ in a class name is a $
    for row, frame in enumerate(frames):
        bottom = height - title_height - row * row_height - _CELL
        for place, text in enumerate(below[row]):
            box = (place * _CELL + _GAP, bottom + _GAP, _CELL - 2 * _GAP, _CELL - 2 * _GAP)
            axes = figure.add_axes(_share(box, width, height), frame_on=False, xticks=[], yticks=[])
            column = shown[place - 1] if place else None
            axes.imshow(
                frame if column is None else overlaid(frame, column.maps[row], colours.cmap)
            )
            axes.set_xlabel(text, **plain)
            if not row:
                axes.set_title(above[place], **plain)
    box = (width / 2 - 1.2, _BAR - 0.25, 2.4, 0.12)
    bar = figure.colorbar(
        colours, cax=figure.add_axes(_share(box, width, height)), orientation="horizontal"
    )
    bar.set_ticks([0, 1], labels=["not relevant", "most relevant"], fontsize=7)
    return _png(figure)


def scale() -> Any:
    """Returns the colours of relevance 0..1, a ``ScalarMappable`` of matplotlib.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    cm: Any = require("matplotlib.cm", extra="report")
    colours = cm.ScalarMappable(cmap=_COLOURS)
    colours.set_clim(0, 1)
    return colours


def _share(box: tuple[float, ...], width: float, height: float) -> list[float]:
    """Returns a box in inches (left, bottom, width, height) as shares of the figure."""
    return [size / whole for size, whole in zip(box, (width, height) * 2, strict=True)]


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    with lacking_letters():
        figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()


def overlaid(frame: NDArray[np.uint8], map: NDArray[np.float32], colours: Any) -> NDArray[Any]:
    """Returns an image in grey, coloured where it is relevant, ``[H, W, 3] float``, 0..1.

    ``colours`` turns numbers 0..1 ``[H, W]`` to ``[H, W, 4]``, as a colour map of matplotlib.
    """
    height, width = frame.shape[:2]
    most = float(map.max())
    scaled = Image.fromarray(map / most if most > 0 else map)
    strength = np.asarray(scaled.resize((width, height), Image.Resampling.BILINEAR)).clip(0, 1)
    grey = frame @ np.array([0.299, 0.587, 0.114]) / 255
    cover = (0.75 * strength**0.7)[..., None]  # the image shows through the strongest colour too
    blended: NDArray[Any] = (1 - cover) * grey[..., None] + cover * colours(strength)[..., :3]
    return blended.clip(0, 1)


def caption(column: Column, row: int, names: Sequence[str] = (), label: int | None = None) -> str:
    """Returns what stands under a map: the answer, how sure it is, and whether it is right."""
    answer = int(column.answers[row])
    text = f"{short_name(answer, names)} {column.confidences[row]:.0%}"
    if label is not None:
        text += " \N{CHECK MARK}" if answer == label else " \N{BALLOT X}"
    if column.asked is not None:
        text += f"\nasked: {short_name(int(column.asked[row]), names)}"
    return text if column.maps[row].any() else f"{text}\nno relevance"


def alt_texts(
    shown: Sequence[Column],
    *,
    names: Sequence[str] = (),
    labels: Sequence[int | None] | None = None,
) -> list[str]:
    """Returns what each row of ``draw_grid`` shows, in words, for those who do not see it."""
    texts = []
    for row in range(len(shown[0].maps) if shown else 0):
        label = None if labels is None else labels[row]
        of = "An image" if label is None else f"An image of {short_name(label, names)}"
        texts.append(f"{of}. " + " ".join(described(column, row, names, label) for column in shown))
    return texts


def described(column: Column, row: int, names: Sequence[str] = (), label: int | None = None) -> str:
    """Returns what a column shows of one image, in words."""
    answer, map = int(column.answers[row]), column.maps[row]
    text = f"{' '.join(column.title.split())}: {short_name(answer, names)}"
    text += f" at {column.confidences[row]:.0%}"
    if label is not None:
        text += ", right" if answer == label else ", wrong"
    if not map.any():
        return f"{text}; no patch is relevant."
    asked = "" if column.asked is None else f" for {short_name(int(column.asked[row]), names)}"
    share = f"half of the relevance{asked} lies in {_half(map):.0%} of the image"
    return f"{text}; {share}, {_where(map)}."


def _half(map: NDArray[np.float32]) -> float:
    """Returns the smallest share of patches that holds half of the relevance."""
    ordered = np.sort(map, axis=None)[::-1].astype(np.float64).cumsum()
    return float((np.searchsorted(ordered, ordered[-1] / 2) + 1) / map.size)


def _where(map: NDArray[np.float32]) -> str:
    """Returns where the centre of relevance is, by thirds of the image."""
    share = map.astype(np.float64) / map.sum(dtype=np.float64)
    places = []
    for axis, words in ((1, ("upper", "", "lower")), (0, ("left", "", "right"))):
        along = share.sum(axis=axis)
        centre = along @ (np.arange(len(along)) + 0.5) / len(along)
        places.append(words[min(int(3 * centre), 2)])
    vertical, horizontal = places
    if not vertical and not horizontal:
        return "around the middle"
    return f"around the {vertical} {horizontal}".replace("  ", " ").strip() + (
        "" if vertical and horizontal else " middle"
    )


def short_name(index: int, names: Sequence[str]) -> str:
    """Returns a class's name, up to the first comma and cut short, or its number."""
    name = names[index].partition(",")[0] if names else f"class {index}"
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"


def _check(
    frames: NDArray[np.uint8], shown: Sequence[Column], labels: Sequence[int | None] | None
) -> None:
    if not 1 <= len(frames) <= MOST_ROWS or not shown:
        raise UsageError(
            f"expected 1..{MOST_ROWS} images and a column or more, found {len(frames)} images and "
            f"{len(shown)} columns"
        )
    counts = {len(column.maps) for column in shown} | ({len(labels)} if labels else set())
    if counts != {len(frames)}:
        raise UsageError(
            f"expected maps and labels of {len(frames)} images, found those of {sorted(counts)}"
        )
