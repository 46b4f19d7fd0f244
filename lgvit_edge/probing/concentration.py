"""Measures relevance maps: how far they spread, and how much of them lies on the object.

Maps are ``[B, Hp, Wp]``, never negative. Every measure is ``[B] float32``, and NaN for a map that
is zero everywhere. None depends on how large relevance is, only on how it is distributed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lgvit_edge.errors import UsageError


def effective_area(maps: Tensor) -> Tensor:
    """Returns the share of the image that an evenly spread map of the same entropy would cover.

    It is exp(H) / N over N patches: 1 where all patches count the same, 1 / N where one counts.
    """
    share = _shares(maps)
    entropy = -torch.special.xlogy(share, share).sum(dim=1)
    area: Tensor = entropy.exp() / share.shape[1]
    return area


def gini(maps: Tensor) -> Tensor:
    """Returns the Gini coefficient: 0 where patches count the same, 1 - 1 / N where one counts."""
    ordered = _shares(maps).sort(dim=1).values
    count = ordered.shape[1]
    ranks = torch.arange(1, count + 1, dtype=ordered.dtype, device=ordered.device)
    return 2 * (ordered * ranks).sum(dim=1) / count - (count + 1) / count


def spread(maps: Tensor) -> Tensor:
    """Returns how far relevance lies from its centre, root mean square in sides of the image.

    0 where one patch counts, 0.41 where all count the same.
    """
    _, height, width = maps.shape
    y, x = ((torch.arange(side, device=maps.device) + 0.5) / side for side in (height, width))
    places = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).reshape(-1, 2)  # [N, 2]
    share = _shares(maps)
    centre = share @ places
    square = ((places - centre[:, None]) ** 2).sum(-1)  # [B, N]
    return (share * square).sum(dim=1).sqrt()


def share_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """Returns the share of relevance inside masks, 0..1.

    ``masks`` are bool or 0..1, ``[B, H, W]`` or ``[H, W]`` for all maps, of any size: a patch
    counts by the part of it that is inside.

    Raises:
        UsageError: they are not as many as the maps.
    """
    return (_shares(maps) * _on_patches(masks, maps)).sum(dim=1)


def points_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """Returns 1 where the most relevant patch lies inside a mask, else 0 (the pointing game).

    Arguments and errors are those of ``share_inside``. A patch is inside if most of it is; of
    equally relevant patches the first one counts.
    """
    share = _shares(maps)
    inside = _on_patches(masks, maps).expand_as(share)
    hit = (inside.gather(1, share.argmax(dim=1, keepdim=True))[:, 0] > 0.5).float()
    return hit.where(share[:, 0].isfinite(), torch.nan)


MEASURES = {"effective_area": effective_area, "gini": gini, "spread": spread}


def _shares(maps: Tensor) -> Tensor:
    """Returns relevance as shares of each map, ``[B, N] float32``; NaN where there is none."""
    flat = maps.flatten(1).float()
    return flat / flat.sum(dim=1, keepdim=True)


def _on_patches(masks: Tensor, maps: Tensor) -> Tensor:
    """Returns which part of each patch is inside, ``[B or 1, N] float32``."""
    several = masks if masks.dim() == 3 else masks[None]
    if several.dim() != 3 or len(several) not in (1, len(maps)):
        raise UsageError(f"expected masks [H, W] or [{len(maps)}, H, W], found {list(masks.shape)}")
    areas = several[:, None].to(maps.device, torch.float32)
    size = (int(maps.shape[1]), int(maps.shape[2]))
    return functional.interpolate(areas, size=size, mode="area").flatten(1)
