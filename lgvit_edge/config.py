"""What an LGViT looks like: the backbone, its exits and how images reach it.

Blocks and exits are numbered from 1 as in the paper; segments from 0.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lgvit_edge._schema import from_json, to_json
from lgvit_edge.errors import ConfigError
from lgvit_edge.image_spec import IMAGENET_PREPROCESS, Preprocess, usual_resize

FAMILIES = ("vit", "deit")
LOCAL_HEADS = ("lph",)
GLOBAL_HEADS = ("gah",)
_LIMIT = 65_536  # no width, depth or side of a real model comes near


@dataclass(frozen=True)
class ExitConfig:
    """One exit: after which block, and its head.

    Attributes:
        block: 1-based; the head reads this block's output.
        head: ``lph`` (paper Eq. 2) or ``gah`` (paper Eq. 4).
        kernel: side k of the LPH's depthwise convolution (Eq. 1), odd, or 0 for none.
        window: side s of the GAH's feature convergence (Eq. 3).
    """

    block: int
    head: str
    kernel: int = 0
    window: int = 0

    def __post_init__(self) -> None:
        """Refuse heads that do not exist and sizes that mean nothing."""
        known = LOCAL_HEADS + GLOBAL_HEADS
        if self.head not in known:
            raise ConfigError(f"head must be one of {', '.join(known)}, found {self.head!r}")
        if self.head == "lph" and (self.kernel < 0 or (self.kernel and self.kernel % 2 == 0)):
            raise ConfigError(f"an lph kernel must be 0 or odd, found {self.kernel}")
        if self.head == "gah" and self.window < 1:
            raise ConfigError(f"a gah window must be at least 1, found {self.window}")


@dataclass(frozen=True)
class LGViTConfig:
    """A ViT or DeiT backbone with exits.

    Attributes:
        family: ``vit`` or ``deit``.
        image_size: side H = W of the input, in pixels.
        patch_size: side P of a patch; N = (H / P)^2 patch tokens.
        hidden_size: width D.
        num_blocks: depth L.
        num_heads: attention heads per block.
        intermediate_size: width of the blocks' MLP, usually 4D.
        num_classes: C.
        prefix_tokens: 1 (class token), or 2 (and DeiT's distillation token).
        classifiers: 1 (on the class token), or 2 (one per prefix token, logits averaged).
        layer_norm_eps: of every LayerNorm.
        qkv_bias: whether query, key and value have biases.
        exits: in order of their blocks.
        lph_residual: the authors' code adds the patch tokens to the LPH's output; Eq. 2 does not.
        gah_average: Eq. 3 averages each window; the authors' code keeps its first token only.
        labels: class names, or empty.
        preprocess: how the weights expect their images.
    """

    family: str
    image_size: int
    patch_size: int
    hidden_size: int
    num_blocks: int
    num_heads: int
    intermediate_size: int
    num_classes: int
    prefix_tokens: int = 1
    classifiers: int = 1
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    exits: tuple[ExitConfig, ...] = ()
    lph_residual: bool = True
    gah_average: bool = False
    labels: tuple[str, ...] = ()
    preprocess: Preprocess = Preprocess()

    def __post_init__(self) -> None:
        """Report every contradiction at once."""
        faults = [
            f"{name} must be 1..{_LIMIT}, found {getattr(self, name)}"
            for name in (
                "image_size patch_size hidden_size num_blocks num_heads intermediate_size "
                "num_classes"
            ).split()
            if not 1 <= getattr(self, name) <= _LIMIT
        ]
        if not faults:
            faults = self._contradictions()
        if faults:
            raise ConfigError("; ".join(faults))

    def _contradictions(self) -> list[str]:
        blocks = [e.block for e in self.exits]
        gahs = [e for e in self.exits if e.head == "gah"]
        checks = [
            (self.family in FAMILIES, f"family must be vit or deit, found {self.family!r}"),
            (
                self.num_blocks <= 1000,
                f"num_blocks must be 1..1000, found {self.num_blocks}",
            ),
            (
                self.image_size % self.patch_size == 0,
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}",
            ),
            (
                self.hidden_size % self.num_heads == 0,
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}",
            ),
            (
                1 <= self.classifiers <= self.prefix_tokens <= 2,
                "expected 1 or 2 prefix_tokens and no more classifiers than prefix_tokens, found "
                f"{self.prefix_tokens} and {self.classifiers}",
            ),
            (
                0 < self.layer_norm_eps <= 1,
                f"layer_norm_eps must be in 0..1, found {self.layer_norm_eps}",
            ),
            (
                all(a < b for a, b in itertools.pairwise(blocks)),
                f"exits must be sorted, each after a block of its own, found {blocks}",
            ),
            (
                all(1 <= b < self.num_blocks for b in blocks),
                f"exits must lie after blocks 1..{self.num_blocks - 1} "
                f"(the final classifier follows block {self.num_blocks}), found {blocks}",
            ),
            (
                not gahs or self.hidden_size % 8 == 0,
                f"gah has 8 attention heads, but hidden_size {self.hidden_size} "
                "is not a multiple of 8",
            ),
            (
                all(e.kernel <= 2 * self.grid for e in self.exits),
                f"lph kernels must fit the {self.grid} x {self.grid} tokens",
            ),
            (
                all(e.window <= self.grid for e in gahs),
                f"gah windows must fit the {self.grid} x {self.grid} tokens",
            ),
            (
                len(self.labels) in (0, self.num_classes),
                f"expected {self.num_classes} labels, found {len(self.labels)}",
            ),
            (
                self.image_size <= self.preprocess.resize,
                f"the crop of {self.image_size} is larger than resize {self.preprocess.resize}",
            ),
        ]
        return [fault for good, fault in checks if not good]

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def num_exits(self) -> int:
        """M: exits before the final classifier."""
        return len(self.exits)

    def replace(self, **changes: Any) -> LGViTConfig:
        """A copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dict(to_json(self))

    @classmethod
    def from_json(cls, data: Any) -> LGViTConfig:
        """Inverse of ``to_json``.

        Raises:
            ConfigError: with all faults at once.
        """
        return from_json(cls, data, where="config", error=ConfigError)


_SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}
ARCHITECTURES = tuple(
    f"{family}-{size}{suffix}"
    for family, suffix in (("vit", ""), ("deit", ""), ("deit", "-distilled"))
    for size in _SIZES
    if not (family == "deit" and size == "large")
)


def architecture(name: str, *, num_classes: int = 1000, image_size: int = 224) -> LGViTConfig:
    """A published backbone by name, without exits, with the preprocessing it was trained with.

    Raises:
        ConfigError: the name is not one of ``ARCHITECTURES``.
    """
    if name not in ARCHITECTURES:
        raise ConfigError(f"unknown architecture {name!r}; known: {', '.join(ARCHITECTURES)}")
    family, size, *distilled = name.split("-")
    width, depth, heads = _SIZES[size]
    tokens = 2 if distilled else 1
    resize = usual_resize(image_size)
    return LGViTConfig(
        family=family,
        image_size=image_size,
        patch_size=16,
        hidden_size=width,
        num_blocks=depth,
        num_heads=heads,
        intermediate_size=4 * width,
        num_classes=num_classes,
        prefix_tokens=tokens,
        classifiers=tokens,
        preprocess=dataclasses.replace(
            IMAGENET_PREPROCESS if family == "deit" else Preprocess(), resize=resize
        ),
    )


def plan_exits(text: str, block_macs: Sequence[int]) -> tuple[ExitConfig, ...]:
    """Exits from what a user types: ``uniform:M``, ``none`` or blocks such as ``4,6,8,10``.

    ``uniform:M`` puts the first exit where a third of the MACs are spent and the others so that
    adjacent exits cost about the same (paper section 3.3). On 12 equal blocks it gives the paper's
    4..11 for M = 8 and 4, 6, 8, 10 for M = 4.

    Args:
        text: as typed.
        block_macs: MACs of each of the L blocks.

    Raises:
        ConfigError: not of this form, out of range, or unsorted.
    """
    depth = len(block_macs)
    if text == "none":
        return ()
    kind, _, count = text.partition(":")
    try:
        if kind == "uniform":
            blocks = _uniform_blocks(int(count), block_macs)
        else:
            blocks = [int(part) for part in text.split(",")]
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"exits must be uniform:M or a list of blocks such as 4,6,8,10; found {text!r}"
        ) from None
    if blocks != sorted(set(blocks)) or blocks[0] < 1 or blocks[-1] >= depth:
        raise ConfigError(
            f"exits must be sorted blocks in 1..{depth - 1} (block {depth} ends in the final "
            f"classifier), found {text!r}"
        )
    return default_heads(blocks)


def _uniform_blocks(count: int, block_macs: Sequence[int]) -> list[int]:
    depth = len(block_macs)
    if not 1 <= count < depth:
        raise ConfigError(f"uniform:M needs 1 <= M <= {depth - 1} here, found M = {count}")
    spent = list(itertools.accumulate(block_macs))
    blocks: list[int] = []
    for i in range(count):
        target = spent[-1] * (1 + 2 * i / count) / 3
        nearest = min(range(depth - 1), key=lambda b: abs(spent[b] - target)) + 1
        # Each block has one exit at most: move on when taken, and leave room for the rest.
        earliest = blocks[-1] + 1 if blocks else 1
        blocks.append(min(max(nearest, earliest), depth - count + i))
    return blocks


def default_heads(blocks: Sequence[int]) -> tuple[ExitConfig, ...]:
    """LPH on the lower half of the exits, GAH on the upper, sizes by depth.

    The paper's f decreases linearly from 3 to 0, its g increases linearly from 2 to 3
    (section 3.3). Rounded to sizes that exist (k in {0, 3}) they give the authors' choice:
    3, 3, 0, 0 / 2, 2, 3, 3 for eight exits, 3, 0 / 2, 3 for four, 3 / 2 for two.
    """
    lower = (len(blocks) + 1) // 2
    upper = len(blocks) - lower
    exits = []
    for i, block in enumerate(blocks):
        if i < lower:
            kernel = 3 * (1 - i / max(lower - 1, 1))
            exits.append(ExitConfig(block, "lph", kernel=3 if kernel >= 1.5 else 0))
        else:
            window = 2 + (i - lower) / max(upper - 1, 1)
            exits.append(ExitConfig(block, "gah", window=round(window)))
    return tuple(exits)
