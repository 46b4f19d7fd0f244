"""The backbone: embedding, blocks 1..L, final classifier, by family."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from lgvit_edge._support.optional import resolve
from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.architecture.families import FAMILIES
from lgvit_edge.architecture.sizes import BlockConfig
from lgvit_edge.model.backbones.embedding import PatchEmbedding


class Parts(Protocol):
    """What the module of a family holds.

    A block has ``deployed``, which is the block as it is exported.
    """

    def Embedding(self, config: LGViTConfig) -> PatchEmbedding:
        """Normalised ``[B, 3, H, W] float -> [B, T, D]``."""

    def block(self, sizes: BlockConfig, config: LGViTConfig) -> nn.Module:
        """One encoder block over ``[B, T, D]``."""

    def final(self, config: LGViTConfig, dim: int) -> nn.Module:
        """Norm and classifier of hidden states of width ``dim``, ``[B, T, D] -> [B, C]``."""

    def resized(self, name: str, tensor: Tensor, old: LGViTConfig, new: LGViTConfig) -> Tensor:
        """A backbone's parameter for another image size."""


def parts(config: LGViTConfig) -> Parts:
    """The module of a configuration's family."""
    found: Parts = resolve(FAMILIES[config.family].backbone)
    return found


class Backbone(nn.Module):
    """A model of any family without exits."""

    def __init__(self, config: LGViTConfig) -> None:
        super().__init__()
        family = parts(config)
        self.embedding = family.Embedding(config)
        self.blocks = nn.ModuleList(family.block(sizes, config) for sizes in config.blocks)
        self.final = family.final(config, config.blocks[-1].dim)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Normalised ``[B, 3, H, W] float -> logits [B, C]``."""
        hidden: Tensor = self.embedding(pixel_values)
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.final(hidden)
        return logits
