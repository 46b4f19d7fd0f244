"""What an LGViT looks like: the backbone, its exits and how images reach it.

Blocks and exits are numbered from 1 as in the paper; segments from 0.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from dataclasses import dataclass
from typing import Any

from lgvit_edge.bundle.codec import from_json, to_json
from lgvit_edge.errors import ConfigError
from lgvit_edge.images.spec import Preprocess

FAMILIES = ("vit", "deit", "swin")
GAH_HEADS = 8  # attention heads of every GAH, as the authors chose
MAX_SIZE = 65_536  # no width, depth or side of a real model comes near

# The kinds of head, and the field of ``ExitConfig`` that holds each one's size.
HEAD_SIZES: dict[str, str | None] = {
    "lph": "kernel",
    "gah": "window",
    "mlp": None,
    "conv": None,
    "attention": None,
    "encoder": "width",
}
LOCAL_HEADS = ("lph",)
GLOBAL_HEADS = ("gah",)


@dataclass(frozen=True)
class ExitConfig:
    """One exit: after which block, and its head.

    Attributes:
        block: 1-based; the head reads this block's output.
        head: ``lph`` (paper Eq. 2), ``gah`` (Eq. 4), ``mlp``, ``conv``, ``attention`` (Table 3) or
            ``encoder`` (ViT-EE).
        kernel: side k of the LPH's depthwise convolution (Eq. 1), odd, or 0 for none.
        window: side s of the GAH's feature convergence (Eq. 3).
        width: of the MLP in an encoder head; 0 for that of the block before it.
    """

    block: int
    head: str
    kernel: int = 0
    window: int = 0
    width: int = 0

    def __post_init__(self) -> None:
        """Refuse heads that do not exist and sizes that mean nothing."""
        if self.head not in HEAD_SIZES:
            raise ConfigError(f"head must be one of {', '.join(HEAD_SIZES)}, found {self.head!r}")
        for name in ("kernel", "window", "width"):
            size = getattr(self, name)
            if size and name != HEAD_SIZES[self.head]:
                raise ConfigError(f"{self.head} has no {name}, found {size}")
        if self.kernel < 0 or (self.kernel and self.kernel % 2 == 0):
            raise ConfigError(f"an lph kernel must be 0 or odd, found {self.kernel}")
        if self.head == "gah" and self.window < 1:
            raise ConfigError(f"a gah window must be at least 1, found {self.window}")
        if not 0 <= self.width <= MAX_SIZE:
            raise ConfigError(f"an encoder width must be 0..{MAX_SIZE}, found {self.width}")

    @property
    def size(self) -> int | None:
        """Kernel, window or width; None where the head has none."""
        name = HEAD_SIZES[self.head]
        return None if name is None else int(getattr(self, name))


@dataclass(frozen=True)
class BlockConfig:
    """Sizes of one encoder block, which in a Swin depend on its stage.

    Attributes:
        dim: width D of its output.
        grid: side of its output's map of patch tokens; N = grid^2.
        num_heads: attention heads.
        intermediate_size: width of its MLP.
        window: side of its attention windows; 0 where every token sees every other.
        shift: of the windows, against those of the block before.
        merges: side of the map it gets, where a patch merging comes first; 0 for none.
    """

    dim: int
    grid: int
    num_heads: int
    intermediate_size: int
    window: int = 0
    shift: int = 0
    merges: int = 0


@dataclass(frozen=True)
class LGViTConfig:
    """A ViT, DeiT or Swin backbone with exits.

    Attributes:
        family: ``vit``, ``deit`` or ``swin``.
        image_size: side H = W of the input, in pixels.
        patch_size: side P of a patch; N = (H / P)^2 patch tokens.
        hidden_size: width D; in a Swin of the first stage, doubled by each that follows.
        num_blocks: depth L, over all stages.
        num_heads: attention heads per block, in a Swin of the first stage.
        intermediate_size: width of the blocks' MLP, usually 4D, in a Swin of the first stage.
        num_classes: C.
        prefix_tokens: 1 (class token), 2 (and DeiT's distillation token), or 0 (Swin).
        classifiers: 1 (on the class token or, in a Swin, the mean of all), or 2 (one per prefix
            token, logits averaged).
        layer_norm_eps: of every LayerNorm of blocks, heads and final classifier.
        qkv_bias: whether query, key and value have biases.
        depths: blocks of each stage of a Swin; empty for the others.
        stage_heads: attention heads of each stage of a Swin; empty for the others.
        window_size: side of a Swin's attention windows, in tokens; 0 for the others.
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
    depths: tuple[int, ...] = ()
    stage_heads: tuple[int, ...] = ()
    window_size: int = 0
    exits: tuple[ExitConfig, ...] = ()
    lph_residual: bool = True
    gah_average: bool = False
    labels: tuple[str, ...] = ()
    preprocess: Preprocess = Preprocess()

    def __post_init__(self) -> None:
        """Report every contradiction at once."""
        faults = [
            f"{name} must be 1..{MAX_SIZE}, found {getattr(self, name)}"
            for name in (
                "image_size patch_size hidden_size num_blocks num_heads intermediate_size "
                "num_classes"
            ).split()
            if not 1 <= getattr(self, name) <= MAX_SIZE
        ]
        # Each step relies on what the one before has found to be sound.
        for check in (self._contradictions, self._stage_contradictions, self._exit_contradictions):
            if not faults:
                faults = [fault for good, fault in check() if not good]
        if faults:
            raise ConfigError("; ".join(faults))

    def _contradictions(self) -> list[tuple[bool, str]]:
        known, after = ", ".join(FAMILIES), [exit.block for exit in self.exits]
        return [
            (self.family in FAMILIES, f"family must be one of {known}, found {self.family!r}"),
            (self.num_blocks <= 1000, f"num_blocks must be 1..1000, found {self.num_blocks}"),
            (
                self.image_size % self.patch_size == 0,
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}",
            ),
            (
                self.hidden_size % self.num_heads == 0,
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}",
            ),
            (
                0 < self.layer_norm_eps <= 1,
                f"layer_norm_eps must be in 0..1, found {self.layer_norm_eps}",
            ),
            (
                len(self.labels) in (0, self.num_classes),
                f"expected {self.num_classes} labels, found {len(self.labels)}",
            ),
            (
                self.image_size <= self.preprocess.resize,
                f"the crop of {self.image_size} is larger than resize {self.preprocess.resize}",
            ),
            (
                all(a < b for a, b in itertools.pairwise(after)),
                f"exits must be sorted, each after a block of its own, found {after}",
            ),
            (
                all(1 <= block < self.num_blocks for block in after),
                f"exits must lie after blocks 1..{self.num_blocks - 1} "
                f"(the final classifier follows block {self.num_blocks}), found {after}",
            ),
        ]

    def _stage_contradictions(self) -> list[tuple[bool, str]]:
        depths, heads = list(self.depths), list(self.stage_heads)
        if self.family != "swin":
            return [
                (
                    1 <= self.classifiers <= self.prefix_tokens <= 2,
                    "expected 1 or 2 prefix_tokens and no more classifiers than prefix_tokens, "
                    f"found {self.prefix_tokens} and {self.classifiers}",
                ),
                (
                    not depths and not heads and self.window_size == 0,
                    f"depths, stage_heads and window_size are a Swin's, found {depths}, {heads} "
                    f"and {self.window_size} in a {self.family}",
                ),
            ]
        widths = [self.hidden_size << stage for stage in range(min(len(depths), 8))]
        return [
            (
                (self.prefix_tokens, self.classifiers) == (0, 1),
                "a swin has no prefix_tokens and one classifier, found "
                f"{self.prefix_tokens} and {self.classifiers}",
            ),
            (
                1 <= len(depths) <= 8 and min(depths) >= 1 and sum(depths) == self.num_blocks,
                f"a swin has 1 to 8 stages of at least one block, {self.num_blocks} in all, found "
                f"depths {depths}",
            ),
            (
                len(heads) == len(depths) and heads[:1] == [self.num_heads],
                f"expected one number of stage_heads per stage, {self.num_heads} in the first, "
                f"found {heads}",
            ),
            (
                all(h >= 1 and w % h == 0 for h, w in zip(heads, widths, strict=False)),
                f"stage widths {widths} are not multiples of stage_heads {heads}",
            ),
            (1 <= self.window_size <= 256, f"window_size must be 1..256, found {self.window_size}"),
        ]

    def _exit_contradictions(self) -> list[tuple[bool, str]]:
        checks: list[tuple[bool, str]] = []
        for exit in self.exits:
            block = self.blocks[exit.block - 1]
            tokens = f"the {block.grid} x {block.grid} tokens after block {exit.block}"
            eight = exit.head == "gah" or (exit.head == "encoder" and self.family == "swin")
            checks += [
                (
                    not eight or block.dim % GAH_HEADS == 0,
                    f"{exit.head} has {GAH_HEADS} attention heads, but hidden_size {block.dim} "
                    f"after block {exit.block} is not a multiple of {GAH_HEADS}",
                ),
                (exit.kernel <= 2 * block.grid, f"lph kernels must fit {tokens}"),
                (exit.window <= block.grid, f"gah windows must fit {tokens}"),
            ]
        return checks

    @functools.cached_property
    def blocks(self) -> tuple[BlockConfig, ...]:
        """Sizes of blocks 1..L, at indices 0..L - 1."""
        if not self.depths:
            one = BlockConfig(self.hidden_size, self.grid, self.num_heads, self.intermediate_size)
            return (one,) * self.num_blocks
        blocks, grid = [], self.grid
        for stage, (depth, heads) in enumerate(zip(self.depths, self.stage_heads, strict=True)):
            merged = grid if stage else 0
            grid = -(-grid // 2) if stage else grid
            # A map no larger than the window is one window, and nothing is there to shift.
            window = min(self.window_size, grid)
            for place in range(depth):
                block = BlockConfig(
                    dim=self.hidden_size << stage,
                    grid=grid,
                    num_heads=heads,
                    intermediate_size=self.intermediate_size << stage,
                    window=window,
                    shift=window // 2 if place % 2 and window < grid else 0,
                    merges=0 if place else merged,
                )
                blocks.append(block)
        return tuple(blocks)

    def hidden_shape(self, block: int) -> tuple[int, int]:
        """``(T, D)``: tokens, prefix included, and width of the hidden state after ``block``."""
        sizes = self.blocks[block - 1]
        return self.prefix_tokens + sizes.grid**2, sizes.dim

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
