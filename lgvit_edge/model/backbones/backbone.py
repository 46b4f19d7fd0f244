"""The backbone of any family: embedding, blocks 1..L and final classifier."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from lgvit_edge._support.optional import resolve
from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.architecture.families import FAMILIES
from lgvit_edge.architecture.sizes import BlockConfig
from lgvit_edge.model.backbones.embedding import PatchEmbedding


class Parts(Protocol):
    """What a family's module provides.

    A block has a method ``deployed``, which returns the block as it is exported. A last block that
    is ``Block`` itself, before ``TokenClassifier`` itself, is computed for the tokens read alone.
    """

    def Embedding(self, config: LGViTConfig) -> PatchEmbedding:
        """Returns the embedding, normalised ``[B, 3, H, W] float -> [B, T, D]``."""

    def block(self, sizes: BlockConfig, config: LGViTConfig) -> nn.Module:
        """Returns one encoder block over ``[B, T, D]``."""

    def final(self, config: LGViTConfig, dim: int) -> nn.Module:
        """Returns the norm and classifier for width ``dim``, ``[B, T, D] -> [B, C]``."""

    def resized(self, name: str, tensor: Tensor, old: LGViTConfig, new: LGViTConfig) -> Tensor:
        """Returns a backbone's parameter for another image size."""


def parts(config: LGViTConfig) -> Parts:
    """Returns the module that implements a configuration's family."""
    module: Parts = resolve(FAMILIES[config.family].backbone)
    return module


class Backbone(nn.Module):
    """A backbone of any family, without exits."""

    def __init__(self, config: LGViTConfig) -> None:
        super().__init__()
        family = parts(config)
        self.embedding = family.Embedding(config)
        self.blocks = nn.ModuleList(family.block(sizes, config) for sizes in config.blocks)
        self.final = family.final(config, config.blocks[-1].dim)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Returns the logits, normalised ``[B, 3, H, W] float -> [B, C]``."""
        hidden: Tensor = self.embedding(pixel_values)
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.final(hidden)
        return logits
