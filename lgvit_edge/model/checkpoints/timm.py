"""Reads timm's backbones; names and shapes of weights tell their configuration."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.architecture.families import FAMILIES
from lgvit_edge.architecture.published import architecture
from lgvit_edge.bundle.codec import from_json
from lgvit_edge.errors import CheckpointError, ConfigError
from lgvit_edge.images.spec import Preprocess
from lgvit_edge.model.checkpoints.weights import Source, State, places, sources_of
from lgvit_edge.model.heads import Names, within
from lgvit_edge.model.lgvit import LGViT

_BLOCK: Names = {
    "norm1": "norm1",
    "norm2": "norm2",
    **{f"attention.{p}": ("attn.qkv", i) for i, p in enumerate(("query", "key", "value"))},
    "attention.table": "attn.relative_position_bias_table",
    "attention.proj": "attn.proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
_TABLE = "layers.0.blocks.0.attn.relative_position_bias_table"  # every Swin has it


def timm_config(state: State, arch: str | None, written: dict[str, Any]) -> LGViTConfig:
    """Returns the configuration that the names and shapes of timm's weights imply.

    Shapes do not tell a ViT's number of attention heads, the family of a model with one prefix
    token, or the preprocessing: published sizes have 64 numbers per head, a distillation token
    means DeiT, and ViT's preprocessing is assumed unless ``arch``, one of ``architectures()``, or
    ``written``, timm's own ``config.json``, say ``deit``.

    Raises:
        CheckpointError: not a timm ViT, DeiT or Swin, or a size that only ``arch`` could explain.
    """
    swin = any(name.startswith("layers.0.blocks.") for name in state)
    head = "head.fc.weight" if "head.fc.weight" in state else "head.weight"
    needed = ["patch_embed.proj.weight", head, *([_TABLE] if swin else ["cls_token", "pos_embed"])]
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
        return config.replace(preprocess=_preprocess(cfg, config.preprocess, config.image_size))
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
        preprocess=FAMILIES[family].usual_preprocess(image_size),
    )


def _swin(state: State, head: str, arch: str | None) -> LGViTConfig:
    dim, _, patch, _ = state["patch_embed.proj.weight"].shape
    depths, heads = [], []
    for stage in range(_count(state, "layers.")):
        depths.append(_count(state, f"layers.{stage}.blocks."))
        table = state.get(f"layers.{stage}.blocks.0.attn.relative_position_bias_table")
        heads.append(1 if table is None else table.shape[1])
    window = (round(len(state[_TABLE]) ** 0.5) + 1) // 2
    # Published models have one window per map after the last merging. The mask of a shifted block,
    # which older files hold, has one row per window of the first map.
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
        preprocess=FAMILIES["swin"].usual_preprocess(image_size),
    )


def _count(state: State, prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})


def _same(arch: str, named: LGViTConfig, dim: int, depth: int) -> None:
    if (named.hidden_size, named.num_blocks) != (dim, depth):
        raise CheckpointError(
            f"{arch} has hidden size {named.hidden_size} and {named.num_blocks} blocks, "
            f"the weights have {dim} and {depth}"
        )


def _preprocess(raw: dict[str, Any], usual: Preprocess, image_size: int) -> Preprocess:
    share = raw.get("crop_pct", 0)
    valid = isinstance(share, (int, float)) and 0.1 <= share <= 1
    fields = {
        "resize": int(image_size / share) if valid else usual.resize,
        "interpolation": raw.get("interpolation", usual.interpolation),
        "mean": raw.get("mean", usual.mean),
        "std": raw.get("std", usual.std),
    }
    return from_json(Preprocess, fields, where="pretrained_cfg", error=ConfigError)


def timm_names(model: LGViT, state: Container[str]) -> dict[str, Source]:
    """Returns where each of our parameters is; ``state`` tells older Swins from newer ones."""
    config = model.config
    names: Names = {
        "backbone.embedding.patch": "patch_embed.proj",
        "backbone.embedding.norm": "patch_embed.norm",
        "backbone.embedding.position": "pos_embed",
        "backbone.final.norm": "norm",
    }
    # timm once merged at the end of a stage, like Swin's authors, and now at the start of the next.
    late = "layers.0.downsample.norm.weight" in state
    for i, (stage, place) in enumerate(places(config)):
        theirs = f"layers.{stage}.blocks.{place}" if config.depths else f"blocks.{i}"
        names[f"backbone.blocks.{i}.merge"] = f"layers.{stage - late}.downsample"
        names |= within(f"backbone.blocks.{i}", _BLOCK, theirs)
    head = "head.fc" if "head.fc.weight" in state else "head"
    names |= within("backbone.final.classifier.linears", {"0": head, "1": "head_dist"})
    return sources_of(model, names, ["cls_token", "dist_token"])
