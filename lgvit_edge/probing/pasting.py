"""Pastes images of several classes into one, so that it is known where each class is.

A map of an exit's relevance for one of the classes should lie on that class's part. Other than with
outlined objects, this needs no masks in the data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lgvit_edge.errors import DataError, UsageError
from lgvit_edge.model.lgvit import LGViT
from lgvit_edge.probing.concentration import points_inside, share_inside
from lgvit_edge.probing.ranks import rank_correlation
from lgvit_edge.probing.relevance import relevance
from lgvit_edge.probing.ways import logits_at

_KNOWN = 5  # an exit knows a class that is among so many of its answers


@dataclass(frozen=True)
class Pasted:
    """Images pasted from several, each of another class.

    Attributes:
        images: normalised, ``[P, 3, H, W] float32``.
        classes: of each part, ``[P, parts] int64``.
        masks: where each part is, ``[parts, H, W] bool``.
    """

    images: Tensor
    classes: Tensor
    masks: Tensor


def paste(images: Tensor, classes: Tensor, *, layout: str = "halves", seed: int = 0) -> Pasted:
    """Pastes normalised images ``[B, 3, H, W]`` of classes ``[B]`` into as many as they make.

    ``halves`` takes the middle half of two images, side by side. ``quadrants`` shrinks four to half
    their side. The seed chooses which go together; an image is used once, and parts of one are of
    different classes.

    Raises:
        UsageError: there is no such layout, or the sides are odd.
        DataError: there are too few images or classes for one.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"layout must be one of {', '.join(LAYOUTS)}, found {layout!r}")
    height, width = images.shape[2:]
    if height % 2 or width % 2:
        raise UsageError(f"expected images with even sides, found {height} x {width}")
    parts, join = LAYOUTS[layout]
    groups = _groups(classes, parts, seed)
    if not groups:
        found = len(set(classes.tolist()))
        raise DataError(f"expected images of {parts} classes or more, found {found}")
    chosen = torch.tensor(groups)  # [P, parts]
    joined = join([images[chosen[:, part]] for part in range(parts)])
    ones = torch.ones(1, 1, height, width)
    masks = [
        join([ones if other == part else torch.zeros_like(ones) for other in range(parts)])
        for part in range(parts)
    ]
    return Pasted(joined, classes.cpu()[chosen], torch.cat(masks)[:, 0] > 0.5)


def _groups(classes: Tensor, parts: int, seed: int) -> list[list[int]]:
    """Returns indices of images that go together, none twice and no class twice in a group.

    The classes with the most images left go first, which leaves over as few as can be.
    """
    generator = torch.Generator().manual_seed(seed)
    left: dict[int, list[int]] = {}
    for index in torch.randperm(len(classes), generator=generator).tolist():
        left.setdefault(int(classes[index]), []).append(index)
    groups = []
    while len(left) >= parts:
        fullest = sorted(left, key=lambda label: -len(left[label]))[:parts]
        groups.append([left[label].pop() for label in fullest])
        left = {label: indices for label, indices in left.items() if indices}
    return groups


def _halves(parts: list[Tensor]) -> Tensor:
    width = parts[0].shape[-1]
    middle = slice(width // 4, width // 4 + width // 2)
    return torch.cat([part[..., middle] for part in parts], dim=-1)


def _quadrants(parts: list[Tensor]) -> Tensor:
    size = [side // 2 for side in parts[0].shape[-2:]]
    small = [
        functional.interpolate(part, size=size, mode="bilinear", antialias=True) for part in parts
    ]
    rows = (torch.cat(pair, dim=-1) for pair in (small[:2], small[2:]))
    return torch.cat(list(rows), dim=-2)


# How many parts, and what joins them: ``[P, 3, H, W]`` of each part to ``[P, 3, H, W]``.
LAYOUTS: dict[str, tuple[int, Callable[[list[Tensor]], Tensor]]] = {
    "halves": (2, _halves),
    "quadrants": (4, _quadrants),
}


@dataclass(frozen=True)
class Pointed:
    """Where an exit looks in pasted images when it is asked for each of their classes.

    Attributes:
        share: of relevance inside the part of the class asked for, ``[P, parts]``.
        hit: whether the most relevant patch is inside, ``[P, parts]``, 1 or 0.
        known: whether the class is among the exit's first five answers, ``[P, parts] bool``.
        correlation: rank correlation of the maps for the first two classes, ``[P]``.
        maps: relevance for the class of each part, ``[P, parts, Hp, Wp]``.
    """

    share: Tensor
    hit: Tensor
    known: Tensor
    correlation: Tensor
    maps: Tensor


def pointed(model: LGViT, pasted: Pasted, *, exit: int, method: str = "gradient") -> Pointed:
    """Returns where an exit looks in pasted images; arguments and errors are ``relevance``'s.

    By chance, and where a map does not depend on the class, shares are 1 / parts on average.
    """
    parts = range(pasted.classes.shape[1])
    maps = [
        relevance(model, pasted.images, exit=exit, classes=pasted.classes[:, part], method=method)
        for part in parts
    ]
    masks = pasted.masks
    logits = logits_at(model, pasted.images, exit)
    answers = logits.topk(min(_KNOWN, logits.shape[1])).indices
    return Pointed(
        torch.stack([share_inside(maps[part], masks[part]) for part in parts], dim=1),
        torch.stack([points_inside(maps[part], masks[part]) for part in parts], dim=1),
        (pasted.classes[..., None] == answers[:, None]).any(-1),
        rank_correlation(maps[0], maps[1]),
        torch.stack(maps, dim=1),
    )
