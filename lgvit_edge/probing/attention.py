"""Records the attention of a model while it runs, and carries relevance back through its blocks.

Relevance is a row of numbers ``[B, T]``, one for each token that a block returns; going back
through the block makes it one for each token that the block reads.

Shapes: B images, T tokens (prefix tokens included), w window side, W windows per image.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from lgvit_edge.model.backbones.block import Attention, Block
from lgvit_edge.model.backbones.swin import PatchMerging, WindowAttention, window_tables
from lgvit_edge.model.backbones.swinv2 import CosineAttention, LatePatchMerging, PostNormBlock

Weights = Mapping[nn.Module, Tensor]  # of each attention, what belongs to it


@contextlib.contextmanager
def recording(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Collects the weights of every attention in these modules that runs inside the context.

    The weights are those that the model itself computes, ``[B, heads, Q, T]`` or in windows
    ``[B W, heads, w^2, w^2]``, and part of its graph; what it computes does not change.
    """
    weights: dict[nn.Module, Tensor] = {}

    def keep(attention: nn.Module, softmax: nn.Module, inputs: Any, output: Tensor) -> None:
        weights[attention] = output

    with contextlib.ExitStack() as hooks:
        for attention in (part for module in modules for part in module.modules()):
            if isinstance(attention, Attention):
                handle = attention.softmax.register_forward_hook(partial(keep, attention))
                hooks.callback(handle.remove)
        yield weights


def is_known(block: nn.Module) -> TypeGuard[Block]:
    """Says whether a block mixes tokens in its attention and patch merging alone."""
    # Types exactly: a subclass may compute something else.
    attentions = (Attention, WindowAttention, CosineAttention)
    mergings = (type(None), PatchMerging, LatePatchMerging)
    return (
        type(block) in (Block, PostNormBlock)
        and type(block.attention) in attentions
        and type(block.merge) in mergings
    )


def before(block: Block, relevance: Tensor, weights: Tensor) -> Tensor:
    """Returns what a block's attention takes relevance to, ``[B, T] -> [B, T]``.

    ``weights`` ``[B, T, T]``, in windows ``[B W, w^2, w^2]``, are one number for each pair of a
    query (first) and a key. What falls on the padding of windows is lost.
    """
    if not isinstance(block.attention, WindowAttention):
        return (relevance[:, None] @ weights)[:, 0]
    tables = window_tables(block.attention.sizes)[:2]
    there, back = (torch.from_numpy(table).to(relevance.device) for table in tables)
    padded = functional.pad(relevance, (0, 1))  # the token that padding reads
    windows = padded[:, there].reshape(len(weights), 1, -1)
    return (windows @ weights).reshape(len(relevance), -1)[:, back]


def unmerged(relevance: Tensor, grid: int) -> Tensor:
    """Splits the relevance of each merged token evenly among those it was merged from.

    ``[B, ceil(grid / 2)^2] -> [B, grid^2]``; nothing falls on the padding of odd sides.
    """
    half = torch.arange(-(-grid // 2), device=relevance.device)
    sources = 2.0 - (half >= grid // 2).to(relevance)  # along one side
    return copied(relevance / (sources[:, None] * sources).flatten(), grid)


def copied(relevance: Tensor, grid: int) -> Tensor:
    """Gives each of the tokens that were merged the number of the merged one.

    ``[B, ceil(grid / 2)^2] -> [B, grid^2]``.
    """
    half = -(-grid // 2)
    merged = relevance.reshape(-1, half, half)
    spread = merged.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    return spread[:, :grid, :grid].flatten(1)
