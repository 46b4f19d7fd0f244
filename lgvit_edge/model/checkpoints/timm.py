"""Configurations that a state dict's names and shapes imply: timm's models come without one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.architecture.published import architecture
from lgvit_edge.errors import CheckpointError, ConfigError
from lgvit_edge.model.checkpoints.preprocessing import timm_preprocess, usual_preprocess

State = dict[str, Tensor]


def timm_config(state: State, arch: str | None, written: dict[str, Any]) -> LGViTConfig:
    """The configuration that a timm state dict's names and shapes imply, or ``arch`` names.

    Shapes do not tell a ViT's number of attention heads, the family of a model with one prefix
    token, or the preprocessing: published sizes have 64 numbers per head, a distillation token
    means DeiT, and ViT's preprocessing is assumed unless ``arch`` or ``written`` say ``deit``.

    Args:
        state: the weights.
        arch: one of ``ARCHITECTURES``, or None.
        written: timm's own ``config.json``, or empty.

    Raises:
        CheckpointError: not a timm ViT, DeiT or Swin, or a size that only ``arch`` could explain.
    """
    swin = any(name.startswith("layers.0.blocks.") for name in state)
    head = "head.fc.weight" if "head.fc.weight" in state else "head.weight"
    needed = ["patch_embed.proj.weight", head]
    needed += ["layers.0.blocks.0.attn.relative_position_bias_table"] if swin else []
    needed += [] if swin else ["cls_token", "pos_embed"]
    missing = [name for name in needed if name not in state]
    if missing:
        raise CheckpointError(
            f"expected a timm ViT, DeiT or Swin state dict, but {', '.join(missing)} is missing; "
            f"found {', '.join(sorted(state)[:4])}..."
        )
    try:
        config = _swin(state, head, arch) if swin else _vit(state, arch, written)
        cfg = written.get("pretrained_cfg", {})
        if not isinstance(cfg, dict):
            raise ConfigError(f"pretrained_cfg must be an object, found {type(cfg).__name__}")
        return config.replace(preprocess=timm_preprocess(cfg, config.preprocess, config.image_size))
    except ConfigError as error:
        raise CheckpointError(f"the weights' shapes do not fit together: {error}") from None


def _vit(state: State, arch: str | None, written: dict[str, Any]) -> LGViTConfig:
    dim = state["cls_token"].shape[-1]
    patch = state["patch_embed.proj.weight"].shape[-1]
    tokens = 2 if "dist_token" in state else 1
    image_size = round((state["pos_embed"].shape[1] - tokens) ** 0.5) * patch
    mlp = state.get("blocks.0.mlp.fc1.weight")
    classes = state["head.weight"].shape[0]
    bias = "blocks.0.attn.qkv.bias" in state
    depth = _count(state, "blocks.")
    if arch is not None:
        named = architecture(arch, num_classes=classes, image_size=image_size)
        _same(arch, named, dim, depth)
        return named.replace(prefix_tokens=tokens, classifiers=tokens, qkv_bias=bias)
    if dim % 64:
        raise CheckpointError(
            f"the number of attention heads cannot be told from hidden size {dim}; "
            "name the architecture that these weights are of: lgvit-edge train --backbone NAME "
            "--weights FILE (in Python: arch=)"
        )
    deit = tokens == 2 or str(written.get("architecture", "")).startswith("deit")
    family = "deit" if deit else "vit"
    return LGViTConfig(
        family=family,
        image_size=image_size,
        patch_size=patch,
        hidden_size=dim,
        num_blocks=depth,
        num_heads=dim // 64,
        intermediate_size=4 * dim if mlp is None else mlp.shape[0],
        num_classes=classes,
        prefix_tokens=tokens,
        classifiers=tokens,
        qkv_bias=bias,
        preprocess=usual_preprocess(family, image_size),
    )


def _swin(state: State, head: str, arch: str | None) -> LGViTConfig:
    dim, _, patch, _ = state["patch_embed.proj.weight"].shape
    depths, heads = [], []
    for stage in range(_count(state, "layers.")):
        depths.append(_count(state, f"layers.{stage}.blocks."))
        table = state.get(f"layers.{stage}.blocks.0.attn.relative_position_bias_table")
        heads.append(1 if table is None else table.shape[1])
    table = state["layers.0.blocks.0.attn.relative_position_bias_table"]
    window = (round(len(table) ** 0.5) + 1) // 2
    # Published models have one window per map after the last merging. The mask of a shifted block,
    # which older files hold, has one row per window of the first.
    image_size = patch * window << (len(depths) - 1)
    mask = state.get("layers.0.blocks.1.attn_mask")
    if mask is not None:
        image_size = patch * window * round(len(mask) ** 0.5)
    if arch is not None:
        named = architecture(arch, num_classes=len(state[head]), image_size=image_size)
        _same(arch, named, dim, sum(depths))
        return named.replace(window_size=window)
    mlp = state.get("layers.0.blocks.0.mlp.fc1.weight")
    return LGViTConfig(
        family="swin",
        image_size=image_size,
        patch_size=patch,
        hidden_size=dim,
        num_blocks=sum(depths),
        num_heads=heads[0],
        intermediate_size=4 * dim if mlp is None else len(mlp),
        num_classes=len(state[head]),
        prefix_tokens=0,
        layer_norm_eps=1e-5,
        qkv_bias="layers.0.blocks.0.attn.qkv.bias" in state,
        depths=tuple(depths),
        stage_heads=tuple(heads),
        window_size=window,
        preprocess=usual_preprocess("swin", image_size),
    )


def _count(state: State, prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})


def _same(arch: str, named: LGViTConfig, dim: int, depth: int) -> None:
    if (named.hidden_size, named.num_blocks) != (dim, depth):
        raise CheckpointError(
            f"{arch} has hidden size {named.hidden_size} and {named.num_blocks} blocks, "
            f"the weights have {dim} and {depth}"
        )
