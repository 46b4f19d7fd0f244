"""Configurations of LGViT models: the backbone, its exits and the preprocessing of images.

Blocks and exits are numbered from 1 as in the paper; segments from 0.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from lgvit_edge.architecture.families import FAMILIES
from lgvit_edge.architecture.heads import HEAD_KINDS
from lgvit_edge.architecture.sizes import (
    ACTIVATIONS,
    FINAL_NORMS,
    POOLINGS,
    ROTATIONS,
    BackboneConfig,
    BlockConfig,
)
from lgvit_edge.bundle.codec import from_json, to_json
from lgvit_edge.errors import ConfigError
from lgvit_edge.images.spec import Preprocess

MAX_SIZE = 65_536  # far above any width, depth or side of a real model
HUB = "hf:"  # before the name of a model on the Hugging Face Hub


@dataclass(frozen=True)
class ExitConfig:
    """One exit: the block it follows, and its head."""

    block: int  # 1-based; the head reads this block's output
    head: str  # a kind of ``HEAD_KINDS``
    # An LPH's kernel side k (paper Eq. 1), a GAH's window side s (Eq. 3), the width of an encoder
    # head's MLP.
    size: int = 0

    def __post_init__(self) -> None:
        if self.head not in HEAD_KINDS:
            raise ConfigError(f"head must be one of {', '.join(HEAD_KINDS)}, found {self.head!r}")
        name = HEAD_KINDS[self.head].size
        if self.size and not name:
            raise ConfigError(f"{self.head} has no size, found {self.size}")
        if not 0 <= self.size <= MAX_SIZE:
            raise ConfigError(f"{self.head} {name} must be 0..{MAX_SIZE}, found {self.size}")


@dataclass(frozen=True)
class LGViTConfig(BackboneConfig):
    """Configuration of a backbone with exits; ``BackboneConfig`` has the backbone's fields."""

    exits: tuple[ExitConfig, ...] = ()  # in order of their blocks
    lph_residual: bool = True  # the authors' code adds patch tokens to the LPH's output, not Eq. 2
    gah_average: bool = False  # as in Eq. 3; the authors' code keeps a window's first token only
    labels: tuple[str, ...] = ()  # class names, or empty
    preprocess: Preprocess = Preprocess()  # of images, as the weights expect them
    source: str = ""  # where on the hub the weights are from, "hf:owner/name@commit"; or nothing

    def __post_init__(self) -> None:
        # Each check relies on the one before it.
        for check in (self._sizes, self._contradictions, self._family, self._heads):
            if faults := list(check()):
                raise ConfigError("; ".join(faults))

    def _sizes(self) -> Iterator[str]:
        names = "image_size patch_size hidden_size num_blocks num_heads intermediate_size"
        for name in (*names.split(), "num_classes"):
            if not 1 <= getattr(self, name) <= MAX_SIZE:
                yield f"{name} must be 1..{MAX_SIZE}, found {getattr(self, name)}"

    def _contradictions(self) -> Iterator[str]:
        names, after = ", ".join(FAMILIES), [exit.block for exit in self.exits]
        size, patch = self.image_size, self.patch_size
        if self.family not in FAMILIES:
            yield f"family must be one of {names}, found {self.family!r}"
        known: dict[str, Collection[str]] = {
            "activation": ACTIVATIONS,
            "pooling": POOLINGS,
            "rotation": ROTATIONS,
            "final_norm": FINAL_NORMS,
        }
        for field, choices in known.items():
            if (found := getattr(self, field)) not in choices:
                yield f"{field} must be one of {', '.join(filter(None, choices))}, found {found!r}"
        if self.rotation and self.hidden_size // max(self.num_heads, 1) % 4:
            width = self.hidden_size // self.num_heads
            yield f"rotation needs attention heads whose width is a multiple of 4, found {width}"
        if not 0 <= self.rotation_side <= MAX_SIZE:
            yield f"rotation_side must be 0..{MAX_SIZE}, found {self.rotation_side}"
        if self.num_blocks > 1000:
            yield f"num_blocks must be 1..1000, found {self.num_blocks}"
        if size % patch:
            yield f"image_size {size} is not a multiple of patch_size {patch}"
        if self.hidden_size % self.num_heads:
            yield f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
        if not 0 < self.layer_norm_eps <= 1:
            yield f"layer_norm_eps must be in 0..1, found {self.layer_norm_eps}"
        if len(self.labels) not in (0, self.num_classes):
            yield f"expected {self.num_classes} labels, found {len(self.labels)}"
        if size > self.preprocess.resize:
            yield f"the crop of {size} is larger than resize {self.preprocess.resize}"
        if after != sorted(set(after)):
            yield f"exits must be sorted, each after a block of its own, found {after}"
        if not all(1 <= block < self.num_blocks for block in after):
            yield (
                f"exits must lie after blocks 1..{self.num_blocks - 1} "
                f"(the final classifier follows block {self.num_blocks}), found {after}"
            )

    def _family(self) -> Iterator[str]:
        family = FAMILIES[self.family]
        tokens, most = self.prefix_tokens, family.prefix_tokens
        if not 0 <= tokens <= most:
            yield f"a {self.family} has at most {most} prefix_tokens, found {tokens}"
        if not 1 <= self.classifiers <= (2 if self.pooling == "token" and tokens > 1 else 1):
            yield (
                "expected one classifier, or two that read a prefix token each, found "
                f"{self.classifiers} with {tokens} prefix_tokens and pooling {self.pooling}"
            )
        if not tokens and self.pooling not in ("mean", "attention"):
            yield f"pooling must be mean or attention without prefix_tokens, found {self.pooling}"
        if self.final_norm != "tokens" and self.pooling != "mean":
            yield f"final_norm must be tokens unless pooling is mean, found {self.final_norm!r}"
        if self.relative_positions and tokens != 1:
            yield f"relative_positions need one prefix token, found {tokens}"
        yield from (fault for good, fault in family.faults(self) if not good)

    def _heads(self) -> Iterator[str]:
        for exit in self.exits:
            block, kind = self.blocks[exit.block - 1], HEAD_KINDS[exit.head]
            if (fault := kind.fault(exit.size, block, FAMILIES[self.family])) is not None:
                yield f"{exit.head} after block {exit.block}: {fault}"

    @functools.cached_property
    def blocks(self) -> tuple[BlockConfig, ...]:
        """Returns the sizes of blocks 1..L, at indices 0..L - 1."""
        return FAMILIES[self.family].blocks(self)

    def hidden_shape(self, block: int) -> tuple[int, int]:
        """Returns ``(T, D)``, tokens with prefix and width, after ``block``; 0 is the embedding."""
        if block == 0:
            return self.prefix_tokens + self.grid**2, self.hidden_size
        sizes = self.blocks[block - 1]
        return self.prefix_tokens + sizes.grid**2, sizes.dim

    @property
    def one_shape(self) -> bool:
        """Says whether the hidden states after all blocks have the same shape."""
        return len({self.hidden_shape(block) for block in range(1, self.num_blocks + 1)}) == 1

    @property
    def num_exits(self) -> int:
        """Returns M, the number of exits before the final classifier."""
        return len(self.exits)

    def replace(self, **changes: Any) -> LGViTConfig:
        """Returns a copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """Returns the configuration in plain JSON types."""
        return dict(to_json(self))

    @classmethod
    def from_json(cls, data: Any) -> LGViTConfig:
        """Builds a configuration from such JSON, or raises ``ConfigError`` with all its faults."""
        return from_json(cls, data, where="config", error=ConfigError)
