"""Compares maps by the order of their patches."""

from __future__ import annotations

import torch
from torch import Tensor


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Returns Spearman's rank correlation of each pair of maps, ``[B, H, W], [B, H, W] -> [B]``.

    Equal numbers share the mean of their ranks. NaN where one of the maps is the same everywhere.
    """
    ranks = [_ranks(maps.flatten(1)) for maps in (first, second)]
    a, b = (rank - rank.mean(dim=1, keepdim=True) for rank in ranks)
    return (a * b).sum(dim=1) / (a.square().sum(dim=1) * b.square().sum(dim=1)).sqrt()


def _ranks(values: Tensor) -> Tensor:
    """Returns the rank of each number in its row, ``[B, N] -> [B, N] float64``."""
    ordered = values.sort(dim=1).values.contiguous()
    first, last = (
        torch.searchsorted(ordered, values.contiguous(), right=right) for right in (False, True)
    )
    return (first + last).double() / 2
