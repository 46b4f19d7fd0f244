"""The parts that only ViT and DeiT have: prefix tokens and learnt positions.

Shapes: B images, N = (H / P)^2 patch tokens, T = N + prefix tokens, D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.architecture.sizes import BlockConfig
from lgvit_edge.model.backbones.block import Attention, Block
from lgvit_edge.model.backbones.classifier import TokenClassifier
from lgvit_edge.model.backbones.embedding import PatchEmbedding


class Embedding(PatchEmbedding):
    """The embedding of ViT and DeiT: patches, prefix tokens and positions."""

    def __init__(self, config: LGViTConfig) -> None:
        super().__init__(config)
        dim, prefix = config.hidden_size, config.prefix_tokens
        self.prefix = nn.Parameter(torch.zeros(1, prefix, dim))
        self.position = nn.Parameter(torch.zeros(1, config.grid**2 + prefix, dim))

    def reset(self) -> None:
        """Sets prefix tokens and positions to fresh random numbers."""
        nn.init.trunc_normal_(self.prefix, std=0.02)
        nn.init.trunc_normal_(self.position, std=0.02)

    def assemble(self, patches: Tensor) -> Tensor:
        """Adds prefix tokens and positions to embedded patches, ``[B, N, D] -> [B, T, D]``."""
        prefix = self.prefix.expand(patches.shape[0], -1, -1)
        return torch.cat([prefix, patches], dim=1) + self.position


def block(sizes: BlockConfig, config: LGViTConfig) -> Block:
    """Returns one encoder block, in which every token attends to every other."""
    attention = Attention(sizes.dim, sizes.num_heads, qkv_bias=config.qkv_bias)
    return Block(sizes, attention, eps=config.layer_norm_eps, merge=None)


def final(config: LGViTConfig, dim: int) -> TokenClassifier:
    """Returns the norm and classifier on the prefix tokens."""
    return TokenClassifier(dim, config.num_classes, config.classifiers, eps=config.layer_norm_eps)


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
