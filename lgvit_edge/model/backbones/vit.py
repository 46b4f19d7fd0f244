"""The parts that only ViT and DeiT have: prefix tokens, learnt positions, their classifiers.

Shapes: B images, N = (H / P)^2 patch tokens, T = N + prefix tokens, D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.architecture.sizes import BlockConfig
from lgvit_edge.model.backbones.block import Attention, Block
from lgvit_edge.model.backbones.classifier import (
    AttentionClassifier,
    MeanClassifier,
    TokenClassifier,
)
from lgvit_edge.model.backbones.embedding import PatchEmbedding
from lgvit_edge.model.backbones.positions import RelativeBias, Rotation


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


def block(sizes: BlockConfig, config: LGViTConfig) -> Block:
    """Returns one encoder block, in which every token attends to every other."""
    dim, heads, eps, rotation = sizes.dim, sizes.num_heads, config.layer_norm_eps, None
    if config.rotation:
        rotation = Rotation(
            *(config.rotation, sizes.grid, config.rotation_side, config.prefix_tokens),
            width=dim // heads,
        )
    attention = Attention(
        dim,
        heads,
        qkv_bias=config.qkv_bias,
        norm_eps=eps if config.qk_norm else None,
        rotation=rotation,
        bias=RelativeBias(sizes.grid, heads) if config.relative_positions else None,
        norm=nn.LayerNorm(dim, eps=eps) if config.attention_norm else None,
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
    classes, prefix, eps = config.num_classes, config.prefix_tokens, config.layer_norm_eps
    if config.pooling == "token":
        return TokenClassifier(dim, classes, config.classifiers, eps=eps)
    if config.pooling == "attention":
        return AttentionClassifier(
            config.blocks[-1], classes, eps=eps, activation=config.activation, prefix=prefix
        )
    return MeanClassifier(
        dim,
        classes,
        eps=eps,
        prefix=prefix,
        final_norm=config.final_norm,
        beside_token=config.pooling == "both",
    )


def resized(name: str, tensor: Tensor, old: LGViTConfig, new: LGViTConfig) -> Tensor:
    """Returns a backbone's parameter for another image size; positions are interpolated.

    Positions bicubic and relative ones bilinear, as Hugging Face does; those of prefix tokens stay
    as they are.
    """
    if name.endswith(".attention.relative_bias.table"):
        return _resized_bias(tensor, old.grid, new.grid)
    if name != "embedding.position":
        return tensor
    return interpolated(tensor, old.prefix_tokens, old.grid, new.grid)


def interpolated(
    position: Tensor, prefix: int, old: int, new: int, *, antialias: bool = False
) -> Tensor:
    """Returns positions ``[1, prefix + old^2, D]`` for another side of the map of patches."""
    first, patches = position[:, :prefix], position[:, prefix:]
    image = patches.transpose(1, 2).unflatten(2, (old, old))
    grown = functional.interpolate(image, size=(new, new), mode="bicubic", antialias=antialias)
    return torch.cat([first, grown.flatten(2).transpose(1, 2)], dim=1)


def _resized_bias(table: Tensor, old: int, new: int) -> Tensor:
    """Returns the table of ``RelativeBias`` for another side of the map of patches."""
    patches, token = table[:-3].T.unflatten(1, (2 * old - 1, 2 * old - 1)), table[-3:]
    grown = functional.interpolate(patches[None], size=(2 * new - 1, 2 * new - 1), mode="bilinear")
    return torch.cat([grown[0].flatten(1).T, token])
