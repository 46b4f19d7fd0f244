"""Compares maps by the order of their patches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lgvit_edge.probing.analysis import correlation


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Returns Spearman's rank correlation of each pair of maps, ``[B, H, W], [B, H, W] -> [B]``.

    Equal numbers share the mean of their ranks. NaN where one of the maps is the same everywhere.
    """
    pairs = zip(first.flatten(1).numpy(), second.flatten(1).numpy(), strict=True)
    found = (correlation(one, other) for one, other in pairs)
    return torch.tensor([math.nan if rank is None else rank for rank in found], dtype=torch.float64)
