"""The parts that only Swin has: windowed and shifted attention, and patch merging.

Constant index tables replace rolls and partitions: one gather takes the tokens to their windows,
shift and padding included, and one takes them back.

Shapes: B images, N = grid^2 tokens, D width, w window side, W windows per image.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.architecture.sizes import BlockConfig
from lgvit_edge.model.backbones.block import Attention, Block
from lgvit_edge.model.backbones.classifier import MeanClassifier
from lgvit_edge.model.backbones.embedding import PatchEmbedding
from lgvit_edge.model.backbones.positions import relative_positions

_EPS = 1e-5  # of the norms of embedding and merging; the configuration sets the others'


class Embedding(PatchEmbedding):
    """The embedding of Swin: patches and norm."""

    def __init__(self, config: LGViTConfig) -> None:
        super().__init__(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=_EPS)

    def assemble(self, patches: Tensor) -> Tensor:
        """Returns the embedded patches, normed, ``[B, N, D] -> [B, N, D]``."""
        normed: Tensor = self.norm(patches)
        return normed


class PatchMerging(nn.Module):
    """Merges four neighbouring tokens into one of twice the width; pads odd sides with zeros."""

    def __init__(self, grid: int, dim: int) -> None:
        super().__init__()
        self.grid = grid
        self.norm = nn.LayerNorm(4 * dim, eps=_EPS)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the merged tokens, ``[B, grid^2, D] -> [B, ceil(grid / 2)^2, 2 D]``."""
        grid, dim = self.grid, x.shape[-1]
        image = x.reshape(-1, grid, grid, dim)
        if odd := grid % 2:
            image = functional.pad(image, (0, 0, 0, odd, 0, odd))
        half = (grid + odd) // 2
        pairs = image.reshape(-1, half, 2, half, 2, dim)
        # Upper left, lower left, upper right, lower right.
        return self.merge(pairs.permute(0, 1, 3, 4, 2, 5).reshape(-1, half * half, 4 * dim))

    def merge(self, quads: Tensor) -> Tensor:
        """Returns four joined tokens in twice the width of one, ``[B, N, 4 D] -> [B, N, 2 D]``."""
        merged: Tensor = self.reduction(self.norm(quads))
        return merged


class WindowAttention(Attention):
    """Self-attention inside w x w windows, with a learnt bias per relative position."""

    def __init__(self, config: BlockConfig, *, qkv_bias: bool) -> None:
        super().__init__(config.dim, config.num_heads, qkv_bias=qkv_bias)
        self.sizes = config
        self.table = nn.Parameter(torch.zeros((2 * config.window - 1) ** 2, config.num_heads))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the attended tokens, ``[B, N, D] -> [B, N, D]``."""
        there, back, _ = window_tables(self.sizes)
        return self.attend(x, _at(there, x), _at(back, x), self.bias())

    def bias(self) -> Tensor:
        """Returns what is added to the scores, ``[1 or W, heads, w^2, w^2]``."""
        area = self.sizes.window**2
        pairs = self.table[_at(relative_positions(self.sizes.window), self.table)]
        bias = pairs.reshape(1, area, area, -1).permute(0, 3, 1, 2)
        mask = window_tables(self.sizes)[2]
        return bias if mask is None else bias + _at(mask, bias).to(bias.dtype)[:, None]

    def attend(self, x: Tensor, there: Tensor, back: Tensor, bias: Tensor) -> Tensor:
        """Returns the attended tokens for given tables; see ``window_tables``."""
        sizes, dim = self.sizes, x.shape[-1]
        area = sizes.window**2
        if len(there) > sizes.grid**2:
            x = functional.pad(x, (0, 0, 0, 1))  # the row of zeros that padding reads
        windows = x.index_select(1, there).reshape(-1, area, dim)
        scores = self.scores(windows)
        count = len(there) // area
        if len(bias) > 1:
            scores = scores.reshape(-1, count, *bias.shape[1:]) + bias
            scores = scores.reshape(-1, *bias.shape[1:])
        else:
            scores = scores + bias
        mixed = self.mix(scores, windows)
        return mixed.reshape(-1, count * area, dim).index_select(1, back)

    def deployed(self) -> nn.Module:
        """Returns a module that computes the same, with bias and index tables as constants."""
        return _DeployedWindowAttention(self)


class _DeployedWindowAttention(nn.Module):
    there: Tensor
    back: Tensor
    bias: Tensor

    @torch.no_grad()
    def __init__(self, attention: WindowAttention) -> None:
        super().__init__()
        self.attention = attention
        there, back, _ = window_tables(attention.sizes)
        self.register_buffer("there", _at(there, attention.table))
        self.register_buffer("back", _at(back, attention.table))
        self.register_buffer("bias", attention.bias())

    def forward(self, x: Tensor) -> Tensor:
        return self.attention.attend(x, self.there, self.back, self.bias)


Tables = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32] | None]


@functools.lru_cache(maxsize=256)
def window_tables(sizes: BlockConfig) -> Tables:
    """Returns where each token goes when the map is padded and shifted and cut into windows.

    Returns:
        ``there [W w^2]``: the token at each place of each window, N for padding;
        ``back [N]``: each token's place; ``mask [W, w^2, w^2]``: ``-window_mask`` between tokens
        that only the shift brings together, or None without a shift.
    """
    grid, window, shift = sizes.grid, sizes.window, sizes.shift
    side = -(-grid // window) * window
    shifted = functools.partial(np.roll, shift=(-shift, -shift), axis=(0, 1))
    image, tokens = np.arange(grid**2).reshape(grid, grid), np.full((side, side), grid**2)
    tokens[:grid, :grid] = shifted(image) if sizes.shift_first else image
    there = _partition(tokens if sizes.shift_first else shifted(tokens), window)
    back = np.empty(grid**2 + 1, np.int64)
    back[there.ravel()] = np.arange(there.size)
    mask = None
    if shift:
        # Three bands a side: whole windows, then the parts before and after the seam.
        band = np.repeat([0, 1, 2], [side - window, window - shift, shift])
        region = _partition(3 * band[:, None] + band, window)
        mask = np.where(region[:, :, None] == region[:, None], 0, -sizes.window_mask)
        mask = mask.astype(np.float32)
    return there.ravel(), back[:-1], mask


def _partition(image: NDArray[np.int64], window: int) -> NDArray[np.int64]:
    """``[side, side] -> [W, w^2]``."""
    count = len(image) // window
    windows = image.reshape(count, window, count, window).transpose(0, 2, 1, 3)
    return windows.reshape(count**2, window**2)


def _at(array: NDArray[Any] | None, like: Tensor) -> Tensor:
    return torch.from_numpy(array).to(like.device)


def block(sizes: BlockConfig, config: LGViTConfig) -> Block:
    """Returns one Swin block, with patch merging if it opens a stage."""
    merge = PatchMerging(sizes.merges, sizes.dim // 2) if sizes.merges else None
    attention = WindowAttention(sizes, qkv_bias=config.qkv_bias)
    return Block(
        sizes, attention, eps=config.layer_norm_eps, merge=merge, activation=config.activation
    )


def final(config: LGViTConfig, dim: int) -> MeanClassifier:
    """Returns the norm and classifier on the mean of all tokens."""
    return MeanClassifier(dim, config.num_classes, eps=config.layer_norm_eps)


def resized(name: str, tensor: Tensor, old: LGViTConfig, new: LGViTConfig) -> Tensor:
    """Returns a backbone's parameter for another image size.

    Windows keep their size and tables, unless a map is or was smaller than a window. A smaller
    window uses the middle of the table; a larger one interpolates it (bicubic, as Swin's authors).
    """
    if not name.endswith(".attention.table"):
        return tensor
    window = new.blocks[int(name.split(".")[1])].window
    side, wanted = round(len(tensor) ** 0.5), 2 * window - 1
    positions = tensor.T.unflatten(1, (side, side))[None]  # [1, heads, side, side]
    if wanted > side:
        positions = functional.interpolate(positions, size=(wanted, wanted), mode="bicubic")
    else:
        first = (side - wanted) // 2
        middle = slice(first, first + wanted)
        positions = positions[..., middle, middle]
    table: Tensor = positions.flatten(2)[0].T.contiguous()
    return table
