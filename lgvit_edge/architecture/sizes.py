"""Sizes of a backbone and of its blocks, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Activations of MLPs: what makes one (or its ``module:name``), and what others call it.
ACTIVATIONS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "gelu": ("torch.nn:GELU", ("gelu_python",)),
    "gelu_tanh": (
        "lgvit_edge.model.backbones.block:tanh_gelu",
        ("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelutanh"),
    ),
    "quick_gelu": ("lgvit_edge.model.backbones.block:QuickGELU", ("quickgelu",)),
    "relu": ("torch.nn:ReLU", ()),
    "silu": ("torch.nn:SiLU", ("swish",)),
}


def activation_named(name: str) -> str | None:
    """Returns the activation that others call ``name``; None for an unknown one."""
    for ours, (_, others) in ACTIVATIONS.items():
        if name.lower() in (ours, *others):
            return ours
    return None


# What the final classifier reads.
POOLINGS = {
    "token": "the class token",
    "mean": "the mean of the patch tokens",
    "both": "the class token beside the mean of the patch tokens",
    "attention": "what a learnt query gathers from the patch tokens (SigLIP)",
}

# What the norm before the final classifier norms.
FINAL_NORMS = {
    "tokens": "the tokens, before they are pooled",
    "pooled": "their mean",
    "": "nothing: there is none (CLIP)",
}


# How queries and keys are turned by the position of their patch.
ROTATIONS = {
    "": "not at all",
    "dinov3": "by its place between the edges of the image",
    "eva": "by its row and column",
}


@dataclass(frozen=True)
class BlockConfig:
    """Sizes of one encoder block; in a Swin they depend on its stage."""

    dim: int  # width D of its output
    grid: int  # side of its output's map of patch tokens; N = grid^2
    num_heads: int
    intermediate_size: int  # width of its MLP
    window: int = 0  # side of its attention windows; 0 if every token attends to every other
    shift: int = 0  # of the windows, relative to those of the block before
    merges: int = 0  # side of its input's map if a patch merging comes first; 0 if none does
    shift_first: bool = False  # whether its map is shifted before it is padded
    window_mask: int = 100  # off the scores of tokens that only the shift brings together


@dataclass(frozen=True)
class BackboneConfig:
    """Sizes of a backbone, in fields that all families share."""

    family: str
    image_size: int  # side H = W of the input, in pixels
    patch_size: int  # side P of a patch; N = (H / P)^2 patch tokens
    hidden_size: int  # width D; in a Swin of the first stage, doubled by each that follows
    num_blocks: int  # depth L, over all stages
    num_heads: int  # attention heads per block, in a Swin of the first stage
    intermediate_size: int  # width of the blocks' MLP, usually 4D, in a Swin of the first stage
    num_classes: int  # C
    prefix_tokens: int = 1  # before those of patches: class, distillation (DeiT), registers; or 0
    classifiers: int = 1  # 2: on class and distillation token, averaged (DeiT)
    pooling: str = "token"  # what the final classifier reads, of ``POOLINGS``
    final_norm: str = "tokens"  # of ``FINAL_NORMS``
    activation: str = "gelu"  # in the MLPs, of ``ACTIVATIONS``
    gated: bool = False  # whether MLPs multiply by a second, activated product (SwiGLU)
    mlp_norm: bool = False  # whether a norm precedes the MLPs' last layer (EVA-02)
    qk_norm: bool = False  # whether each attention head norms its queries and keys
    attention_norm: bool = False  # whether a norm precedes attention's last layer (EVA-02's CLIP)
    relative_positions: bool = False  # whether attention adds a bias per relative position (BEiT)
    rotation: str = ""  # of ``ROTATIONS``: rotary positions of patches
    rotation_side: int = 0  # side of the map whose rows and columns "eva" counts; 0: of this one
    embedding_norm: bool = False  # whether a norm precedes the first block (CLIP)
    layer_norm_eps: float = 1e-6  # of every LayerNorm of blocks, heads and final classifier
    qkv_bias: bool = True  # whether query, key and value have biases
    depths: tuple[int, ...] = ()  # blocks of each stage of a Swin; empty for the others
    stage_heads: tuple[int, ...] = ()  # attention heads of each stage; empty for the others
    window_size: int = 0  # side of a Swin's attention windows, in tokens; 0 for the others
    # Whether a Swin's maps are shifted before they are padded (timm), not after (Hugging Face).
    shift_first: bool = False
    # Off the scores of tokens that only a shift brings together; transformers' Swin V2 takes 200.
    window_mask: int = 100

    @property
    def grid(self) -> int:
        """Returns the number of patches along one side of the image."""
        return self.image_size // self.patch_size
