"""A head and a family of backbones as somebody else would write them, in a file of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.architecture.families import Family
from lgvit_edge.architecture.heads import HeadKind
from lgvit_edge.architecture.sizes import BlockConfig
from lgvit_edge.errors import ConfigError
from lgvit_edge.model.backbones.classifier import MeanClassifier
from lgvit_edge.model.backbones.embedding import PatchEmbedding
from lgvit_edge.model.heads import ExitHead


class Sparse(ExitHead):
    """Every ``stride``-th token along each side, through one layer; their mean, classified."""

    places: Tensor

    def __init__(self, block: BlockConfig, prefix: int, stride: int, classes: int) -> None:
        super().__init__()
        places = prefix + torch.arange(block.grid**2).reshape(block.grid, block.grid)
        self.register_buffer("places", places[::stride, ::stride].flatten(), persistent=False)
        self.layer = nn.Linear(block.dim, block.dim)
        self.classifier = nn.Linear(block.dim, classes)

    def features(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.layer(hidden.index_select(1, self.places.to(hidden.device))))

    def classify(self, hidden: Tensor, features: Tensor) -> Tensor:
        logits: Tensor = self.classifier(features.mean(dim=1))
        return logits


def sparse(config: LGViTConfig, exit: ExitConfig) -> Sparse:
    block = config.blocks[exit.block - 1]
    return Sparse(block, config.prefix_tokens, exit.size, config.num_classes)


def fault(size: int, block: BlockConfig, family: Family) -> str | None:
    return None if 1 <= size <= block.grid else f"its stride must be 1..{block.grid}, not {size}"


SPARSE = HeadKind(
    "sparse",
    "One layer over every s-th token.",
    "toys:sparse",
    size="stride",
    default=2,
    fault=fault,
    role="global",
    stride=lambda size: size,
)


class Embedding(PatchEmbedding):
    """Patches and nothing else."""

    def assemble(self, patches: Tensor) -> Tensor:
        return patches


class Mixer(nn.Module):
    """A layer across tokens, then one across features; halves the map where ``merges`` says so."""

    def __init__(self, sizes: BlockConfig) -> None:
        super().__init__()
        self.grid, self.merges = sizes.grid, sizes.merges
        self.tokens = nn.Linear(sizes.grid**2, sizes.grid**2)
        self.norm = nn.LayerNorm(sizes.dim)
        self.widen = nn.Linear(sizes.dim, sizes.intermediate_size)
        self.narrow = nn.Linear(sizes.intermediate_size, sizes.dim)

    def forward(self, x: Tensor) -> Tensor:
        if self.merges:
            pairs = x.reshape(-1, self.grid, 2, self.grid, 2, x.shape[-1])
            x = pairs.mean(dim=(2, 4)).flatten(1, 2)
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        mixed: Tensor = x + self.narrow(torch.relu(self.widen(self.norm(x))))
        return mixed

    def deployed(self) -> nn.Module:
        return self


def block(sizes: BlockConfig, config: LGViTConfig) -> Mixer:
    return Mixer(sizes)


def final(config: LGViTConfig, dim: int) -> MeanClassifier:
    return MeanClassifier(dim, config.num_classes, eps=config.layer_norm_eps)


def resized(name: str, tensor: Tensor, old: LGViTConfig, new: LGViTConfig) -> Tensor:
    raise ConfigError(f"a mixer takes images of {old.image_size} only, found {new.image_size}")


def halving(config: LGViTConfig) -> tuple[BlockConfig, ...]:
    """The last two blocks see a map of half the side."""
    blocks = []
    for number in range(1, config.num_blocks + 1):
        half = number > config.num_blocks - 2
        merges = config.grid if number == config.num_blocks - 1 else 0
        grid = config.grid // 2 if half else config.grid
        sizes = (config.hidden_size, grid, config.num_heads, config.intermediate_size)
        blocks.append(BlockConfig(*sizes, merges=merges))
    return tuple(blocks)


def nano(image_size: int) -> dict[str, Any]:
    sizes = dict(patch_size=4, hidden_size=16, num_blocks=6, num_heads=2, intermediate_size=32)
    return sizes | {"prefix_tokens": 0, "pooling": "mean"}


MIXER = Family(
    "mixer", "Mixer", "toys", {"mixer-nano": nano}, blocks=halving, windows=(1, 1), encoder_heads=4
)
