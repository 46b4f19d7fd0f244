"""Random models under the names others give them, and the directories they are published in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

State = dict[str, Tensor]
TWO = ("cls_classifier", "distillation_classifier")
ONE = ("classifier",)


def write_directory(
    folder: Path, config: object, state: State, weights: str = "pytorch_model.bin"
) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (torch.save if weights == "pytorch_model.bin" else save_file)(state, folder / weights)
    return folder


def random_pixels(size: int, seed: int = 5) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


class Maker:
    """Fills a state dict with seeded random numbers, named as the caller says."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.state: State = {}

    def normal(self, name: str, *shape: int, std: float = 0.4, mean: float = 0.0) -> None:
        self.state[name] = mean + std * torch.randn(shape, generator=self.generator)

    def linear(self, name: str, out: int, *fan_in: int, bias: bool = True) -> None:
        self.normal(f"{name}.weight", out, *fan_in, std=float(np.prod(fan_in)) ** -0.5)
        if bias:
            self.normal(f"{name}.bias", out)

    def norm(self, name: str, dim: int) -> None:
        self.normal(f"{name}.weight", dim, mean=1.0, std=0.2)
        self.normal(f"{name}.bias", dim)

    def batch_norm(self, name: str, dim: int) -> None:
        self.norm(name, dim)
        self.normal(f"{name}.running_mean", dim)
        self.state[f"{name}.running_var"] = torch.rand(dim, generator=self.generator) + 0.5
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def query_key_value(self, name: str, dim: int) -> None:
        for part in ("query", "key", "value"):
            self.linear(f"{name}.{part}", dim, dim)

    def block(self, name: str, inner: str, dim: int, width: int) -> None:
        """One block under Hugging Face's names; ``inner`` is ``attention`` or, in a Swin, self."""
        self.query_key_value(f"{name}.attention.{inner}", dim)
        self.linear(f"{name}.attention.output.dense", dim, dim)
        self.norm(f"{name}.layernorm_before", dim)
        self.norm(f"{name}.layernorm_after", dim)
        self.linear(f"{name}.intermediate.dense", width, dim)
        self.linear(f"{name}.output.dense", dim, width)

    def body(self, mlp: str, kind: str, dim: int) -> None:
        """What an authors' head does to the map."""
        if kind in ("conv1_1", "conv2_1"):
            self.linear(f"{mlp}.conv1.0", dim, dim, 1, 1)
            self.batch_norm(f"{mlp}.conv1.2", dim)
            self.linear(f"{mlp}.conv2.0", dim, dim, 1, 1)
            self.batch_norm(f"{mlp}.conv2.1", dim)
        if kind == "conv1_1":
            self.linear(f"{mlp}.proj", dim, 1, 3, 3)
            self.batch_norm(f"{mlp}.proj_bn", dim)
        if kind == "conv_normal":
            self.linear(f"{mlp}.conv.0", dim, dim, 3, 3)
            self.batch_norm(f"{mlp}.conv.2", dim)
        if kind.startswith("attention_r"):
            self.linear(f"{mlp}.qkv", 3 * dim, dim, bias=False)
            self.linear(f"{mlp}.proj", dim, dim)
        if kind == "self_attention":
            self.query_key_value(f"{mlp}.attention", dim)
            self.linear(f"{mlp}.output.dense", dim, dim)


def timm_state(seed: int, dim: int = 64, classes: int = 3) -> State:
    """A ViT of two blocks for images of 32 x 32, under timm's names."""
    make = Maker(seed)
    make.normal("cls_token", 1, 1, dim)
    make.normal("pos_embed", 1, 17, dim)
    make.linear("patch_embed.proj", dim, 3, 8, 8)
    for i in range(2):
        make.norm(f"blocks.{i}.norm1", dim)
        make.linear(f"blocks.{i}.attn.qkv", 3 * dim, dim)
        make.linear(f"blocks.{i}.attn.proj", dim, dim)
        make.norm(f"blocks.{i}.norm2", dim)
        make.linear(f"blocks.{i}.mlp.fc1", 2 * dim, dim)
        make.linear(f"blocks.{i}.mlp.fc2", dim, 2 * dim)
    make.norm("norm", dim)
    make.linear("head", classes, dim)
    return make.state


# ViT and DeiT.

D, HEADS, DEPTH, MLP, PATCH, IMAGE, CLASSES = 32, 4, 6, 48, 4, 28, 5  # a grid of 7 x 7
EPS = 1e-12
HF_CONFIG = {
    **dict(hidden_size=D, num_hidden_layers=DEPTH, num_attention_heads=HEADS),
    **dict(intermediate_size=MLP, image_size=IMAGE, patch_size=PATCH, hidden_act="gelu"),
    **dict(layer_norm_eps=EPS, qkv_bias=True),
    "id2label": {str(i): f"thing {i}" for i in range(CLASSES)},
}


def huggingface_state(
    prefix: str, *, tokens: int, classifiers: tuple[str, ...], depth: int = DEPTH
) -> Maker:
    make = Maker(seed=tokens)
    e = f"{prefix}.embeddings"
    for token in ("cls_token", "distillation_token")[:tokens]:
        make.normal(f"{e}.{token}", 1, 1, D)
    make.normal(f"{e}.position_embeddings", 1, (IMAGE // PATCH) ** 2 + tokens, D)
    make.linear(f"{e}.patch_embeddings.projection", D, 3, PATCH, PATCH)
    for i in range(depth):
        make.block(f"{prefix}.encoder.layer.{i}", "attention", D, MLP)
    make.norm(f"{prefix}.layernorm", D)
    for name in classifiers:
        make.linear(name, CLASSES, D)
    return make


def add_exit(make: Maker, k: int, kind: str, classifiers: tuple[str, ...]) -> None:
    """Exit k of the authors' ViT (one classifier) or DeiT (two); ``kind`` in their words."""
    name = f"deit.encoder.highway.{k}"
    if kind == "vit":
        make.block(f"{name}.layer", "attention", D, MLP)
        name += ".classifier"
    if kind in ("vit", "linear") and len(classifiers) == 1:
        make.linear(f"{name}.pooler.dense", D, D)
    elif kind in ("vit", "linear"):
        make.norm(f"{name}.layernorm", D)
    make.body(f"{name}.mlp", kind, D)
    for classifier in classifiers:
        make.linear(f"{name}.{classifier}", CLASSES, D)


# Swin.


def swin_state(
    *, image: int, patch: int, dim: int, depths: list[int], heads: list[int], window: int
) -> Maker:
    """MLPs of three times the width; tables as large as the windows that fit each map."""
    make = Maker(seed=image)
    make.linear("swin.embeddings.patch_embeddings.projection", dim, 3, patch, patch)
    make.norm("swin.embeddings.norm", dim)
    grid = image // patch
    for s, depth in enumerate(depths):
        layer, inside = f"swin.encoder.layers.{s}", min(window, grid)
        for b in range(depth):
            name = f"{layer}.blocks.{b}"
            make.block(name, "self", dim, 3 * dim)
            table = f"{name}.attention.self.relative_position_bias_table"
            make.normal(table, (2 * inside - 1) ** 2, heads[s], std=1.0)
            # Constant in real files; were it read, nothing would fit.
            index = f"{name}.attention.self.relative_position_index"
            make.state[index] = torch.zeros(inside**2, inside**2, dtype=torch.int64)
        if s < len(depths) - 1:
            make.norm(f"{layer}.downsample.norm", 4 * dim)
            make.linear(f"{layer}.downsample.reduction", 2 * dim, 4 * dim, bias=False)
            dim, grid = 2 * dim, (grid + 1) // 2
    make.norm("swin.layernorm", dim)
    make.linear("classifier", CLASSES, dim)
    return make


def add_swin_exit(make: Maker, name: str, kind: str, dim: int, width: int = 40) -> None:
    """One exit of the authors' Swin, whatever stage ``name`` puts it in."""
    if kind == "vit":
        make.block(f"{name}.layer", "attention", dim, width)
    make.body(f"{name}.mlp", kind, dim)
    place = name if kind == "linear" else f"{name}.classifier"
    make.norm(f"{place}.layernorm", dim)
    make.linear(f"{place}.classifier", CLASSES, dim)
