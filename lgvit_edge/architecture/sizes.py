"""Sizes of a backbone and of its blocks, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockConfig:
    """Sizes of one encoder block; in a Swin they depend on its stage.

    Attributes:
        dim: width D of its output.
        grid: side of its output's map of patch tokens; N = grid^2.
        intermediate_size: width of its MLP.
        window: side of its attention windows; 0 if every token attends to every other.
        shift: of the windows, relative to those of the block before.
        merges: side of its input's map if a patch merging comes first; 0 if none does.
    """

    dim: int
    grid: int
    num_heads: int
    intermediate_size: int
    window: int = 0
    shift: int = 0
    merges: int = 0


@dataclass(frozen=True)
class BackboneConfig:
    """Sizes of a backbone, in fields that all families share.

    Attributes:
        image_size: side H = W of the input, in pixels.
        patch_size: side P of a patch; N = (H / P)^2 patch tokens.
        hidden_size: width D; in a Swin of the first stage, doubled by each that follows.
        num_blocks: depth L, over all stages.
        num_heads: attention heads per block, in a Swin of the first stage.
        intermediate_size: width of the blocks' MLP, usually 4D, in a Swin of the first stage.
        prefix_tokens: 1 (class token), 2 (and DeiT's distillation token), or 0 (Swin).
        classifiers: 1 (on the class token or, in a Swin, the mean of all), or 2 (one per prefix
            token, logits averaged).
        layer_norm_eps: of every LayerNorm of blocks, heads and final classifier.
        qkv_bias: whether query, key and value have biases.
        depths: blocks of each stage of a Swin; empty for the others.
        stage_heads: attention heads of each stage of a Swin; empty for the others.
        window_size: side of a Swin's attention windows, in tokens; 0 for the others.
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

    @property
    def grid(self) -> int:
        """Returns the number of patches along one side of the image."""
        return self.image_size // self.patch_size
