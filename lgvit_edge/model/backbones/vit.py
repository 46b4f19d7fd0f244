"""The parts that only ViT and DeiT have: prefix tokens, learnt positions, their classifiers.

Shapes: B images, N = (H / P)^2 patch tokens, T = N + prefix tokens, D hidden size.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.architecture.sizes import BlockConfig
from lgvit_edge.model.backbones.block import Attention, Block
from lgvit_edge.model.backbones.classifier import MeanClassifier, TokenClassifier
from lgvit_edge.model.backbones.embedding import PatchEmbedding


class Embedding(PatchEmbedding):
    """The embedding of ViT and DeiT: patches, prefix tokens and positions."""

    def __init__(self, config: LGViTConfig) -> None:
        super().__init__(config)
        dim, prefix = config.hidden_size, config.prefix_tokens
        self.prefix = nn.Parameter(torch.zeros(1, prefix, dim))
        self.position = nn.Parameter(torch.zeros(1, config.grid**2 + prefix, dim))
        norms, eps = config.embedding_norm, config.layer_norm_eps
        self.norm = nn.LayerNorm(dim, eps=eps) if norms else None

    def reset(self) -> None:
        """Sets prefix tokens and positions to fresh random numbers."""
        nn.init.trunc_normal_(self.prefix, std=0.02)
        nn.init.trunc_normal_(self.position, std=0.02)

    def assemble(self, patches: Tensor) -> Tensor:
        """Adds prefix tokens and positions to embedded patches, ``[B, N, D] -> [B, T, D]``."""
        tokens = patches
        if self.prefix.shape[1]:
            tokens = torch.cat([self.prefix.expand(patches.shape[0], -1, -1), patches], dim=1)
        tokens = tokens + self.position
        return tokens if self.norm is None else self.norm(tokens)


class Rotation(nn.Module):
    """Rotary positions: turns pairs of numbers of a query or key by the position of its patch."""

    def __init__(self, kind: str, grid: int, side: int, prefix: int, width: int) -> None:
        super().__init__()
        self.kind, self.grid, self.side, self.prefix = kind, grid, side, prefix
        self.width = width

    def tables(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Returns cosines and sines, each ``[T, width]``; prefix tokens are not turned."""
        angles = rotation_angles(self.kind, self.grid, self.side, self.prefix, self.width)
        turned = torch.from_numpy(angles)
        return turned.cos().to(like), turned.sin().to(like)

    def forward(self, x: Tensor) -> Tensor:
        """Returns queries or keys, turned, in their shape ``[B, heads, T, width]``."""
        return turned(x, *self.tables(x))

    def deployed(self) -> nn.Module:
        """Returns a module that computes the same, with its tables as constants."""
        return _DeployedRotation(*self.tables(torch.zeros(())))


class _DeployedRotation(nn.Module):
    cosines: Tensor
    sines: Tensor

    def __init__(self, cosines: Tensor, sines: Tensor) -> None:
        super().__init__()
        self.register_buffer("cosines", cosines)
        self.register_buffer("sines", sines)

    def forward(self, x: Tensor) -> Tensor:
        return turned(x, self.cosines, self.sines)


def turned(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turns number i with number i + width / 2 of each token, ``[..., T, width]``."""
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat([-second, first], dim=-1) * sines


@functools.lru_cache(maxsize=64)
def rotation_angles(
    kind: str, grid: int, side: int, prefix: int, width: int
) -> NDArray[np.float32]:
    """Returns the angles in radians, ``[T, width]``: of rows, then of columns, twice.

    ``dinov3`` turns by 2 pi times the place in -1..1, over periods up to 100; ``eva`` by row and
    column, counted on a map of ``side``, over periods up to 2 pi 10,000.
    """
    share = np.arange(width // 4, dtype=np.float32) / (width // 4)
    if kind == "dinov3":
        places = 2 * ((np.arange(grid, dtype=np.float32) + 0.5) / grid) - 1
        speeds = 2 * math.pi / 100**share
    else:
        places = np.arange(grid, dtype=np.float32) / grid * (side or grid)
        speeds = 1 / 10_000**share
    line = places[:, None] * speeds
    rows, columns = np.repeat(line, grid, axis=0), np.tile(line, (grid, 1))
    half = np.concatenate([rows, columns], axis=1)
    angles = np.concatenate([half, half], axis=1)
    return np.pad(angles, ((prefix, 0), (0, 0))).astype(np.float32)


def block(sizes: BlockConfig, config: LGViTConfig) -> Block:
    """Returns one encoder block, in which every token attends to every other."""
    eps, rotation = config.layer_norm_eps, None
    if config.rotation:
        width = sizes.dim // sizes.num_heads
        rotation = Rotation(
            config.rotation, sizes.grid, config.rotation_side, config.prefix_tokens, width
        )
    attention = Attention(
        sizes.dim,
        sizes.num_heads,
        qkv_bias=config.qkv_bias,
        norm_eps=eps if config.qk_norm else None,
        rotation=rotation,
    )
    return Block(
        sizes,
        attention,
        eps=eps,
        activation=config.activation,
        gated=config.gated,
        mlp_norm=config.mlp_norm,
    )


def final(config: LGViTConfig, dim: int) -> nn.Module:
    """Returns the norm and classifier on what ``config.pooling`` names."""
    classes, eps = config.num_classes, config.layer_norm_eps
    if config.pooling == "token":
        return TokenClassifier(dim, classes, config.classifiers, eps=eps)
    return MeanClassifier(
        dim,
        classes,
        eps=eps,
        prefix=config.prefix_tokens,
        pooled_norm=config.pooled_norm,
        beside_token=config.pooling == "both",
    )


def resized(name: str, tensor: Tensor, old: LGViTConfig, new: LGViTConfig) -> Tensor:
    """Returns a backbone's parameter for another image size; positions are interpolated.

    Bicubic, as Hugging Face does; those of prefix tokens stay as they are.
    """
    if name != "embedding.position":
        return tensor
    prefix, patches = tensor[:, : old.prefix_tokens], tensor[:, old.prefix_tokens :]
    image = patches.transpose(1, 2).unflatten(2, (old.grid, old.grid))
    side = (new.grid, new.grid)
    grown = functional.interpolate(image, size=side, mode="bicubic", align_corners=False)
    return torch.cat([prefix, grown.flatten(2).transpose(1, 2)], dim=1)
