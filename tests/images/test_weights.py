"""Pillow's weights: whether they give Pillow's pixels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from lgvit_edge.errors import DataError
from lgvit_edge.images import weights
from lgvit_edge.images.preprocess import resize_crop
from lgvit_edge.images.spec import INTERPOLATIONS, Preprocess
from lgvit_edge.images.weights import resize_weights, weighted

# Pillow's order of axes depends on them, differently by version.
SIZES = [(1, 1), (40, 30), (30, 40), (29, 29), (34, 23), (23, 34), (67, 6), (301, 3), (300, 3)]
SIZES += [(200, 301), (480, 100), (2, 401), (120, 160)]


@pytest.fixture
def forgotten() -> Iterator[None]:
    """This Pillow is tried again, before and after."""
    weights._rows_first.cache_clear()
    yield
    weights._rows_first.cache_clear()


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_weights_give_pillow_s_pixels(interpolation: str, squash: bool) -> None:
    rng = np.random.default_rng(0)
    for size, resize in ((23, 29), (32, 32), (1, 1)):
        spec = Preprocess(resize=resize, interpolation=interpolation, squash=squash)
        for height, width in SIZES:
            frame = rng.integers(0, 256, (height, width, 3), np.uint8)
            found = weighted(frame, resize_weights(height, width, spec, size))
            np.testing.assert_array_equal(found, resize_crop(frame, spec, size), f"{frame.shape}")


def test_weights_make_a_whole() -> None:
    columns, rows, _ = resize_weights(50, 70, Preprocess(resize=29), 23)
    for axis, length in ((columns, 70), (rows, 50)):
        assert axis.dtype == np.int32 and axis.shape[1] == 23
        first, count = axis[:2]
        assert (first >= 0).all() and (first + count <= length).all()
        np.testing.assert_allclose(axis[2:].sum(axis=0), 2**22, atol=len(axis))


@pytest.mark.usefixtures("forgotten")
def test_every_rule_of_pillow_is_told_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for rule in weights._RULES:
        monkeypatch.setattr(weights, "_orders", lambda *tried, rule=rule: [rule(*tried, 8)])
        weights._rows_first.cache_clear()
        assert weights._rows_first() is rule


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("orders", [[], [True]])
def test_a_pillow_of_another_rule_is_refused(
    orders: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or of other weights, so that neither order gives its pixels."""
    monkeypatch.setattr(weights, "_orders", lambda *tried: orders)
    with pytest.raises(DataError, match=r"Pillow .* resizes in a way .* pip install 'Pillow==13"):
        resize_weights(40, 30, Preprocess(), 224)
