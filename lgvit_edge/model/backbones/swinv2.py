"""The parts that only Swin V2 has: cosine attention, and norms behind what they norm.

Shapes: B images, N = grid^2 tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.architecture.sizes import BlockConfig
from lgvit_edge.model.backbones.block import Block, split_heads
from lgvit_edge.model.backbones.swin import (
    Embedding,
    PatchMerging,
    WindowAttention,
    final,
    resized,
)

__all__ = ["Embedding", "block", "final", "resized"]


class LatePatchMerging(PatchMerging):
    """Merges four neighbouring tokens into one of twice the width, and norms the result."""

    def __init__(self, grid: int, dim: int) -> None:
        super().__init__(grid, dim)
        self.norm = nn.LayerNorm(2 * dim, eps=self.norm.eps)

    def merge(self, quads: Tensor) -> Tensor:
        """Returns four joined tokens in twice the width of one, ``[B, N, 4 D] -> [B, N, 2 D]``."""
        merged: Tensor = self.norm(self.reduction(quads))
        return merged


class CosineAttention(WindowAttention):
    """Window attention whose scores are scaled cosines of queries and keys; keys have no bias.

    ``scale`` ``[heads]`` is what the authors compute as ``exp(min(logit_scale, log 100))``, and
    ``table`` what their MLP makes of relative positions. Both are trained as they stand here.
    """

    def __init__(self, config: BlockConfig, *, qkv_bias: bool) -> None:
        super().__init__(config, qkv_bias=qkv_bias)
        self.key = nn.Linear(config.dim, config.dim, bias=False)
        self.scale = nn.Parameter(torch.full((config.num_heads,), 10.0))

    def scores(self, x: Tensor) -> Tensor:
        """Returns the scores before the softmax, ``[B, T, D] -> [B, heads, T, T]``."""
        q, k = (_unit(split_heads(f(x), self.heads)) for f in (self.query, self.key))
        scores: Tensor = (q * self.scale[:, None, None]) @ k.transpose(-2, -1)
        return scores


def _unit(x: Tensor) -> Tensor:
    """Returns vectors of length 1 in the last dimension; zeros, as padding has them, stay zeros.

    Lengths are taken in float32: in float16 their squares overflow, and the eps would be 0.
    """
    exact = x.float()
    length = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
    unit: Tensor = (exact / length.clamp_min(1e-12)).to(x.dtype)
    return unit


class PostNormBlock(Block):
    """An encoder block over ``[B, T, D]`` that norms what it adds, not what it reads."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``[B, T, D]`` for ``[B, T, D]``; with patch merging, for ``[B, 4T, D/2]``."""
        if self.merge is not None:
            x = self.merge(x)
        attended: Tensor = self.norm1(self.attention(x))
        x = x + attended
        mixed: Tensor = self.norm2(self.mlp(x))
        return x + mixed


def block(sizes: BlockConfig, config: LGViTConfig) -> Block:
    """Returns one block of Swin V2, with patch merging if it opens a stage."""
    merge = LatePatchMerging(sizes.merges, sizes.dim // 2) if sizes.merges else None
    attention = CosineAttention(sizes, qkv_bias=config.qkv_bias)
    return PostNormBlock(
        sizes, attention, eps=config.layer_norm_eps, merge=merge, activation=config.activation
    )
