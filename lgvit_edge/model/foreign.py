"""Configurations of checkpoints that others wrote: authors' and Hugging Face's JSON, timm's shapes.

Nothing is evaluated: the authors' strings such as "[4,5,6]" are parsed as JSON.
"""

from __future__ import annotations

import json
from typing import Any

from torch import Tensor

from lgvit_edge._schema import from_json
from lgvit_edge.config import ExitConfig, LGViTConfig, architecture
from lgvit_edge.errors import CheckpointError, ConfigError
from lgvit_edge.image_spec import IMAGENET_PREPROCESS, Preprocess, usual_resize

# The authors' "LGViT" by number of exits; other heads come one per name.
_AUTHORS_LGVIT = {
    2: ("conv1_1", "attention_r2"),
    4: ("conv1_1", "conv2_1", "attention_r2", "attention_r3"),
    6: ("conv1_1", "conv2_1", "attention_r2", "attention_r2", "attention_r3", "attention_r3"),
    8: ("conv1_1",) * 2 + ("conv2_1",) * 2 + ("attention_r2",) * 2 + ("attention_r3",) * 2,
}


def authors_config(raw: dict[str, Any]) -> LGViTConfig:
    """The authors' ``config.json`` of a ViT or DeiT LGViT.

    Raises:
        CheckpointError: not such a file, or one of a kind that is not supported.
    """
    kind = raw.get("backbone")
    if kind not in ("ViT", "DeiT"):
        raise CheckpointError(
            'expected an LGViT config.json with backbone "ViT" or "DeiT", found backbone '
            f"{kind!r}, model_type {raw.get('model_type')!r}"
        )
    positions = raw.get("position_exits")
    if isinstance(positions, str):
        try:
            positions = json.loads(positions)
        except (ValueError, RecursionError):
            pass  # reported below with what was found
    if not isinstance(positions, list) or not all(type(p) is int for p in positions):
        raise CheckpointError(
            f'config.json: position_exits must be a list such as "[4,5,6]", found {positions!r}'
        )
    if raw.get("num_early_exits", len(positions)) != len(positions):
        raise CheckpointError(
            f"config.json: num_early_exits {raw['num_early_exits']!r} but position_exits "
            f"{positions}"
        )
    highway = raw.get("highway_type")
    names = _AUTHORS_LGVIT.get(len(positions)) if highway == "LGViT" else None
    if names is None:
        names = (str(highway),) * len(positions)
    try:
        exits = tuple(_authors_exit(b, n) for b, n in zip(positions, names, strict=True))
        return _transformer(raw, "vit" if kind == "ViT" else "deit", exits=exits)
    except ConfigError as error:
        raise CheckpointError(f"config.json: {error}") from None


def _authors_exit(block: int, name: str) -> ExitConfig:
    if name == "conv1_1":
        return ExitConfig(block, "lph", kernel=3)
    if name == "conv2_1":
        return ExitConfig(block, "lph", kernel=0)
    window = name.removeprefix("attention_r")
    if name.startswith("attention_r") and window.isdecimal() and len(window) == 1:
        return ExitConfig(block, "gah", window=int(window))
    raise CheckpointError(
        f"config.json: highway_type {name!r} is not supported; expected LGViT (2, 4, 6 or 8 "
        "exits), conv1_1, conv2_1 or attention_rS"
    )


def huggingface_config(
    raw: dict[str, Any], state: dict[str, Tensor], preprocessor: dict[str, Any]
) -> LGViTConfig:
    """A Hugging Face ``config.json`` of a plain ViT or DeiT classifier.

    Args:
        raw: ``config.json``.
        state: the weights, whose names tell one classifier from two.
        preprocessor: ``preprocessor_config.json``, or empty for the family's own preprocessing.

    Raises:
        CheckpointError: not such a file.
    """
    family = raw.get("model_type")
    if family not in ("vit", "deit"):
        raise CheckpointError(f"expected config.json with model_type vit or deit, found {family!r}")
    try:
        classifiers = 2 if "cls_classifier.weight" in state else 1
        config = _transformer(raw, family, classifiers=classifiers)
        return config.replace(preprocess=_preprocess(preprocessor, config))
    except ConfigError as error:
        raise CheckpointError(f"config.json: {error}") from None


_RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def _preprocess(raw: dict[str, Any], config: LGViTConfig) -> Preprocess:
    usual = IMAGENET_PREPROCESS if config.family == "deit" else Preprocess()
    size = raw.get("size")
    if isinstance(size, dict):
        size = size.get("shortest_edge", size.get("height"))
    fields = {
        "resize": size if type(size) is int else usual_resize(config.image_size),
        "interpolation": _RESAMPLE.get(raw.get("resample", -1), usual.interpolation),
        "mean": raw.get("image_mean", usual.mean),
        "std": raw.get("image_std", usual.std),
    }
    return from_json(Preprocess, fields, where="preprocessor_config.json", error=ConfigError)


def _transformer(
    raw: dict[str, Any],
    family: str,
    *,
    exits: tuple[ExitConfig, ...] = (),
    classifiers: int | None = None,
) -> LGViTConfig:
    labels = raw.get("id2label")
    names: tuple[str, ...] = ()
    if isinstance(labels, dict):
        try:
            names = tuple(str(labels[key]) for key in sorted(labels, key=int))
        except ValueError:
            raise ConfigError("id2label must map class numbers to names") from None
    size = raw.get("image_size", 224)
    tokens = 2 if family == "deit" else 1
    if raw.get("hidden_act", "gelu") != "gelu":
        raise ConfigError(f"hidden_act must be gelu, found {raw['hidden_act']!r}")
    fields = {
        "family": family,
        "image_size": size,
        "patch_size": raw.get("patch_size", 16),
        "hidden_size": raw.get("hidden_size", 768),
        "num_blocks": raw.get("num_hidden_layers", 12),
        "num_heads": raw.get("num_attention_heads", 12),
        "intermediate_size": raw.get("intermediate_size", 3072),
        "num_classes": raw.get("num_labels", len(names) or 2),
        "prefix_tokens": tokens,
        "classifiers": classifiers or tokens,
        "layer_norm_eps": raw.get("layer_norm_eps", 1e-12),
        "qkv_bias": raw.get("qkv_bias", True),
        # Placeholders such as LABEL_0 are no names.
        "labels": [] if all(n.startswith("LABEL_") for n in names) else list(names),
        "preprocess": {"resize": usual_resize(size) if type(size) is int else 256},
    }
    config = LGViTConfig.from_json(fields)
    return config.replace(exits=exits)


def timm_config(state: dict[str, Tensor], arch: str | None) -> LGViTConfig:
    """The configuration that a timm state dict's names and shapes imply, or ``arch`` names.

    Shapes do not tell the number of attention heads, the family of a model with one prefix token,
    or the preprocessing: published sizes have 64 numbers per head, a distillation token means
    DeiT, and ViT's preprocessing is assumed unless ``arch`` says ``deit-...``.

    Raises:
        CheckpointError: not a timm ViT or DeiT, or a size that only ``arch`` could explain.
    """
    needed = ("cls_token", "pos_embed", "patch_embed.proj.weight", "head.weight")
    missing = [name for name in needed if name not in state]
    if missing:
        raise CheckpointError(
            f"expected a timm ViT or DeiT state dict, but {', '.join(missing)} is missing; "
            f"found {', '.join(sorted(state)[:4])}..."
        )
    dim = state["cls_token"].shape[-1]
    patch = state["patch_embed.proj.weight"].shape[-1]
    tokens = 2 if "dist_token" in state else 1
    side = round((state["pos_embed"].shape[1] - tokens) ** 0.5)
    depth = len({k.split(".")[1] for k in state if k.startswith("blocks.")})
    mlp = state.get("blocks.0.mlp.fc1.weight")
    classes = state["head.weight"].shape[0]
    try:
        if arch is not None:
            named = architecture(arch, num_classes=classes, image_size=side * patch)
            if (named.hidden_size, named.num_blocks) != (dim, depth):
                raise CheckpointError(
                    f"{arch} has hidden size {named.hidden_size} and {named.num_blocks} blocks, "
                    f"the weights have {dim} and {depth}"
                )
            return named.replace(
                prefix_tokens=tokens, classifiers=tokens, qkv_bias=_has_qkv_bias(state)
            )
        if dim % 64:
            raise CheckpointError(
                f"the number of attention heads cannot be told from hidden size {dim}; "
                "name the architecture with --arch"
            )
        return LGViTConfig(
            family="deit" if tokens == 2 else "vit",
            image_size=side * patch,
            patch_size=patch,
            hidden_size=dim,
            num_blocks=depth,
            num_heads=dim // 64,
            intermediate_size=4 * dim if mlp is None else mlp.shape[0],
            num_classes=classes,
            prefix_tokens=tokens,
            classifiers=tokens,
            qkv_bias=_has_qkv_bias(state),
            preprocess=_scaled(IMAGENET_PREPROCESS if tokens == 2 else Preprocess(), side * patch),
        )
    except ConfigError as error:
        raise CheckpointError(f"the weights' shapes do not fit together: {error}") from None


def _has_qkv_bias(state: dict[str, Tensor]) -> bool:
    return "blocks.0.attn.qkv.bias" in state


def _scaled(preprocess: Preprocess, image_size: int) -> Preprocess:
    return Preprocess(
        usual_resize(image_size), preprocess.interpolation, preprocess.mean, preprocess.std
    )
