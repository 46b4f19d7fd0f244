"""Pictures of relevance maps, and what they say to those who do not see them."""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from small import vit

from lgvit_edge.architecture.config import ExitConfig
from lgvit_edge.errors import MissingDependency, UsageError
from lgvit_edge.model import LGViT
from lgvit_edge.model.randomised import randomised
from lgvit_edge.probing.overlay import (
    MOST_ROWS,
    Column,
    alt_texts,
    caption,
    columns,
    draw_grid,
    overlaid,
)

NAMES = ("tench, Tinca tinca", "a class with a rather long name", "cost $x_1$ \N{GRINNING FACE}")
FRAMES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)


def column(**changes: Any) -> Column:
    maps = np.zeros((2, 4, 4), np.float32)
    maps[0, 0, 3] = 1
    maps[0, 3, 3] = 0.2
    values = dict(
        title="gah, block 3\ngradient",
        block=3,
        maps=maps,
        answers=np.array([0, 2]),
        confidences=np.array([0.831, 0.5], np.float32),
    )
    return Column(**values | changes)


def opened(picture: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(picture))
    image.load()
    return image


def test_every_exit_of_two_models_has_a_column() -> None:
    exits = (ExitConfig(2, "lph", 3), ExitConfig(3, "gah", 2))
    one = randomised(LGViT(vit(exits=exits)))
    other = randomised(LGViT(vit(exits=(ExitConfig(3, "mlp"),))), seed=1)
    images = torch.randn(2, 3, 32, 32)
    shown = columns(one, images) + columns(other, images, name="vanilla", method="gradient")
    shown.sort(key=lambda each: each.block)
    assert [" ".join(each.title.split()) for each in shown] == [
        "lph, block 2 gradcam",
        "gah, block 3 gradient",
        "vanilla mlp, block 3 gradient",
        "final, block 5 gradient",
        "vanilla final, block 5 gradient",
    ]
    with torch.no_grad():
        expected = one.exit_logits(images).softmax(-1).max(-1)
    assert shown[1].answers.tolist() == expected.indices[:, 1].tolist()
    np.testing.assert_allclose(shown[1].confidences, expected.values[:, 1], rtol=1e-4)
    picture = opened(draw_grid(FRAMES, shown, names=NAMES, labels=[0, None]))
    assert picture.width > 6 * 150 and picture.height > 2 * 150
    (only,) = columns(one, images, exits=[2], classes=torch.tensor([1, 0]))
    assert only.asked is not None and only.asked.tolist() == [1, 0]


def test_captions_say_the_answer_and_whether_it_is_right() -> None:
    shown = column()
    assert caption(shown, 0, NAMES, 0) == "tench 83% \N{CHECK MARK}"
    assert caption(shown, 0, NAMES, 1) == "tench 83% \N{BALLOT X}"
    assert caption(shown, 0) == "class 0 83%"
    assert caption(shown, 1, NAMES).endswith("50%\nno relevance")
    asked = column(asked=np.array([1, 1]))
    assert (
        caption(asked, 0, NAMES) == "tench 83%\nasked: a class with a rather\N{HORIZONTAL ELLIPSIS}"
    )


def test_words_say_what_a_picture_shows() -> None:
    first, second = alt_texts([column()], names=NAMES, labels=[0, 0])
    assert first == (
        "An image of tench. gah, block 3 gradient: tench at 83%, right; half of the relevance lies "
        "in 6% of the image, around the upper right."
    )
    assert second.endswith("at 50%, wrong; no patch is relevant.")
    plain = alt_texts([column(asked=np.array([1, 1]))])[0]
    assert plain.startswith("An image. ") and "class 0 at 83%; half of the relevance for" in plain


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ((4, 4), "around the middle."),
        ((0, 4), "around the upper middle."),
        ((4, 8), "around the right middle."),
        ((8, 0), "around the lower left."),
    ],
)
def test_words_say_where(place: tuple[int, int], words: str) -> None:
    maps = np.zeros((1, 9, 9), np.float32)
    maps[0][place] = 1
    assert alt_texts([column(maps=maps)])[0].endswith(words)


def test_what_is_relevant_is_coloured_and_the_rest_is_grey() -> None:
    shown = overlaid(FRAMES[0], column().maps[0], colormaps["inferno"])
    grey = np.ptp(shown, axis=2)
    assert shown.shape == (32, 32, 3) and 0 <= shown.min() and shown.max() <= 1
    assert grey[:, :16].max() < 1e-6 and grey[:6, 26:].min() > 0.1
    nothing = overlaid(FRAMES[0], np.zeros((4, 4), np.float32), colormaps["inferno"])
    assert np.ptp(nothing, axis=2).max() < 1e-6


def test_names_of_any_letters_are_drawn() -> None:
    """A $ is no formula, and letters that the font lacks are no warning, which would fail here."""
    assert opened(draw_grid(FRAMES, [column()], names=NAMES, labels=[2, 2])).format == "PNG"


def test_pictures_are_the_same_every_time() -> None:
    assert draw_grid(FRAMES, [column()]) == draw_grid(FRAMES, [column()])


def test_what_cannot_be_drawn_is_refused() -> None:
    many = np.zeros((MOST_ROWS + 1, 8, 8, 3), np.uint8)
    for frames, shown in ((many, [column()]), (FRAMES[:0], [column()]), (FRAMES, [])):
        with pytest.raises(UsageError, match=f"1..{MOST_ROWS} images and a column or more, found"):
            draw_grid(frames, shown)
    with pytest.raises(UsageError, match=r"of 1 images, found those of \[2\]"):
        draw_grid(FRAMES[:1], [column()])
    with pytest.raises(UsageError, match=r"of 2 images, found those of \[1, 2\]"):
        draw_grid(FRAMES, [column()], labels=[0])


def test_a_missing_matplotlib_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependency, match=r"matplotlib.*pip install 'lgvit-edge\[report\]'"):
        draw_grid(FRAMES, [column()])
