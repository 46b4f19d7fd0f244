"""How maps are measured, and whether those of a model that has learnt something make sense."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from small import vit
from torch import Tensor
from torch.nn import functional

from lgvit_edge.architecture.config import ExitConfig
from lgvit_edge.errors import DataError, UsageError
from lgvit_edge.model import LGViT
from lgvit_edge.model.randomised import randomised
from lgvit_edge.probing.concentration import (
    effective_area,
    gini,
    points_inside,
    share_inside,
    spread,
)
from lgvit_edge.probing.pasting import paste, pointed
from lgvit_edge.probing.ranks import rank_correlation
from lgvit_edge.probing.relevance import relevance
from lgvit_edge.probing.sanity import cascade, randomisation

EVEN = torch.full((1, 8, 8), 3.0)
ONE = torch.zeros(1, 8, 8)
ONE[0, 1, 6] = 2
HALF = torch.zeros(1, 8, 8)
HALF[:, :, :4] = 0.5


# Measures, on maps whose numbers are known.


def test_area_is_what_an_even_map_would_cover() -> None:
    areas = effective_area(torch.cat([EVEN, ONE, HALF]))
    torch.testing.assert_close(areas, torch.tensor([1, 1 / 64, 0.5]))


def test_gini_is_zero_for_even_maps_and_near_one_for_points() -> None:
    values = gini(torch.cat([EVEN, ONE, HALF]))
    torch.testing.assert_close(values, torch.tensor([0, 1 - 1 / 64, 0.5]), atol=1e-6, rtol=0)
    x = torch.rand(1, 5, 7)
    pairs = (x.flatten()[:, None] - x.flatten()).abs().mean() / (2 * x.mean())
    torch.testing.assert_close(gini(x)[0], pairs)


def test_spread_is_the_distance_from_the_centre() -> None:
    two = torch.zeros(1, 8, 8)
    two[0, 0, 0] = two[0, 0, 4] = 1  # half a side apart
    found = spread(torch.cat([EVEN, ONE, two]))
    even = math.sqrt((1 - 1 / 64) / 6)
    torch.testing.assert_close(found, torch.tensor([even, 0, 0.25]), atol=1e-4, rtol=0)


def test_shares_and_points_inside_masks_of_any_size() -> None:
    maps = torch.cat([EVEN, ONE, HALF])
    right = torch.zeros(32, 32, dtype=torch.bool)
    right[:, 16:] = True
    torch.testing.assert_close(share_inside(maps, right), torch.tensor([0.5, 1, 0]))
    assert points_inside(maps, right).tolist() == [0, 1, 0]
    each = torch.stack([right, ~right, ~right])
    torch.testing.assert_close(share_inside(maps, each), torch.tensor([0.5, 0, 1]))
    middle = torch.zeros(1, 5, 5)  # no patch is wholly inside or outside
    middle[:, 2:3, 2:3] = 1
    assert 0 < share_inside(EVEN, middle)[0] < 0.1
    with pytest.raises(UsageError, match=r"masks \[H, W\] or \[3, H, W\], found \[2, 8, 8\]"):
        share_inside(maps, maps[:2])


def test_maps_without_relevance_have_no_numbers() -> None:
    none = torch.zeros(1, 8, 8)
    values = [measure(none) for measure in (effective_area, gini, spread)]
    values += [share_inside(none, EVEN), points_inside(none, EVEN)]
    assert all(value.isnan().all() for value in values)


def test_no_measure_depends_on_how_large_relevance_is() -> None:
    maps = torch.rand(4, 8, 8)
    for measure in (effective_area, gini, spread):
        torch.testing.assert_close(measure(maps), measure(1e-9 * maps), rtol=1e-3, atol=1e-5)


def test_rank_correlations_are_scipys() -> None:
    first, second = torch.rand(5, 8, 8), torch.rand(5, 8, 8)
    second[:, :4] = 0  # ties
    expected = [
        spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(first, second, strict=True)
    ]
    np.testing.assert_allclose(rank_correlation(first, second).numpy(), expected, atol=1e-6)
    same = rank_correlation(first, 3 * first**2)
    torch.testing.assert_close(same, torch.ones(5, dtype=same.dtype))
    assert rank_correlation(first, torch.zeros(5, 8, 8)).isnan().all()


# Pasting.


def test_halves_are_the_middles_of_two_images() -> None:
    images = torch.stack([torch.full((3, 8, 8), float(i)) for i in range(4)])
    images[:, :, :, :2] = images[:, :, :, 6:] = 9  # what is cut off
    made = paste(images, torch.tensor([0, 0, 1, 1]))
    assert made.images.shape == (2, 3, 8, 8) and made.classes.tolist() != [[0, 0], [1, 1]]
    assert made.images.max() < 9 and made.masks.tolist()[0] == [[True] * 4 + [False] * 4] * 8
    for image, classes in zip(made.images, made.classes, strict=True):
        for mask, label in zip(made.masks, classes.tolist(), strict=True):
            assert set(image[:, mask].flatten().tolist()) < {2.0 * label, 2.0 * label + 1}


def test_quadrants_are_four_small_images() -> None:
    images = torch.arange(12.0)[:, None, None, None].expand(12, 3, 8, 8)
    labels = torch.arange(12) % 6
    made = paste(images, labels, layout="quadrants")
    assert len(made.images) == 3 and made.masks.sum(0).eq(1).all()
    used = []
    for image, classes in zip(made.images, made.classes, strict=True):
        assert len(set(classes.tolist())) == 4
        for mask, label in zip(made.masks, classes, strict=True):
            (number,) = set(image[:, mask].flatten().tolist())
            assert int(number) % 6 == label
            used.append(number)
    assert len(set(used)) == 12


def test_the_seed_chooses_and_images_that_have_no_partner_are_left_out() -> None:
    images, labels = torch.rand(9, 3, 8, 8), torch.tensor([0] * 7 + [1, 2])
    first, again, other = (paste(images, labels, seed=seed).images for seed in (0, 0, 1))
    assert len(first) == 2 and torch.equal(first, again) and not torch.equal(first, other)
    with pytest.raises(DataError, match="images of 4 classes or more, found 3"):
        paste(images, labels, layout="quadrants")
    with pytest.raises(UsageError, match="layout must be one of halves, quadrants, found 'ninths'"):
        paste(images, labels, layout="ninths")
    with pytest.raises(UsageError, match="even sides, found 7 x 8"):
        paste(images[:, :, :7], labels)


# A model that has learnt something: the colour of a spot that lies anywhere on noise.

COLOURS = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1]])
CONFIG = vit(
    patch_size=4,
    hidden_size=32,
    num_blocks=3,
    intermediate_size=64,
    num_classes=4,
    exits=(ExitConfig(1, "conv"), ExitConfig(2, "attention")),
)
EXITS = (1, 2, 3)


def spots(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, their classes, and where the spots are; all lie in the middle half."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.5 * torch.randn(count, 3, 32, 32, generator=generator)
    labels = torch.randint(4, (count,), generator=generator)
    corners = torch.randint(8, 18, (count, 2), generator=generator)
    masks = torch.zeros(count, 32, 32, dtype=torch.bool)
    for image, label, (y, x), mask in zip(images, labels, corners, masks, strict=True):
        mask[y : y + 6, x : x + 6] = True
        image[:, mask] = COLOURS[label][:, None] * 2
    return images, labels, masks


@pytest.fixture(scope="module")
def learnt() -> LGViT:
    torch.manual_seed(0)
    model = LGViT(CONFIG).train()
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(100):
        images, labels, _ = spots(16, step)
        logits = model.exit_logits(images)
        loss = functional.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(3))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    images, labels, _ = spots(200, 1000)
    with torch.no_grad():
        right = (model.eval().exit_logits(images).argmax(-1) == labels[:, None]).float().mean(0)
    assert right.min() > 0.9, right
    return model


@pytest.mark.parametrize("exit", EXITS)
def test_relevance_lies_on_what_the_class_is_told_by(learnt: LGViT, exit: int) -> None:
    images, _, masks = spots(64, 2000)
    on_spot = share_inside(relevance(learnt, images, exit=exit), masks).mean()
    assert on_spot > 4 * 36 / 32**2, on_spot


@pytest.mark.parametrize("exit", EXITS)
def test_two_classes_in_an_image_have_maps_of_their_own(learnt: LGViT, exit: int) -> None:
    made = paste(*spots(64, 3000)[:2])
    found = pointed(learnt, made, exit=exit)
    assert found.share.mean() > 0.55 and found.hit.mean() > 0.6 and found.known.all()
    assert found.correlation.mean() < 0.7
    assert found.share.shape == found.hit.shape == found.known.shape == made.classes.shape


def test_a_rollout_knows_no_class(learnt: LGViT) -> None:
    found = pointed(learnt, paste(*spots(64, 3000)[:2]), exit=3, method="rollout")
    torch.testing.assert_close(found.share.mean(), torch.tensor(0.5))
    torch.testing.assert_close(found.correlation, torch.ones_like(found.correlation))


@pytest.mark.parametrize("exit", EXITS)
def test_random_weights_destroy_the_map(learnt: LGViT, exit: int) -> None:
    images = spots(32, 4000)[0]
    steps = {k: float(v.mean()) for k, v in randomisation(learnt, images, exit=exit).items()}
    blocks = [f"block {number}" for number in range(exit, 0, -1)]
    assert list(steps) == ["head", *blocks, "embedding"]
    assert steps["head"] > steps["block 1"] and max(map(abs, list(steps.values())[-2:])) < 0.25


def test_the_cascade_replaces_one_part_after_the_other(learnt: LGViT) -> None:
    before = copy.deepcopy(learnt.state_dict())
    changed: Callable[[LGViT], set[str]] = lambda model: {  # noqa: E731
        name.rpartition(".")[0]
        for name, tensor in model.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    parts = [(name, changed(model)) for name, model in cascade(learnt, 2)]
    assert [name for name, _ in parts] == ["head", "block 2", "block 1", "embedding"]
    added = [parts[0][1], *(now[1] - last[1] for last, now in itertools.pairwise(parts))]
    starts = ("heads.1", "backbone.blocks.1", "backbone.blocks.0", "backbone.embedding")
    for names, start in zip(added, starts, strict=True):
        assert names and all(name.startswith(start) for name in names)
    for name, tensor in learnt.state_dict().items():
        assert torch.equal(tensor, before[name])
    (*_, (_, noise)) = cascade(learnt, 3)
    whole = randomised(copy.deepcopy(learnt)).backbone.state_dict()
    for name, tensor in noise.backbone.state_dict().items():
        assert torch.equal(tensor, whole[name]), name
    with pytest.raises(UsageError, match=r"exit must be 1\.\.3"):
        next(cascade(learnt, 4))
