"""Configurations of checkpoints that others wrote: the authors' and Hugging Face's JSON.

Nothing is evaluated: the authors' strings such as "[4,5,6]" are parsed as JSON.
"""

from __future__ import annotations

import json
from typing import Any

from torch import Tensor

from lgvit_edge.architecture.config import HEAD_SIZES, MAX_SIZE, ExitConfig, LGViTConfig
from lgvit_edge.errors import CheckpointError, ConfigError
from lgvit_edge.images.spec import usual_resize
from lgvit_edge.model.checkpoints.preprocessing import huggingface_preprocess

_BACKBONES = {"ViT": "vit", "DeiT": "deit", None: "swin"}
# The authors' "LGViT" by number of exits; other heads come one per name.
_LGVIT = {
    2: ("conv1_1", "attention_r2"),
    4: ("conv1_1", "conv2_1", "attention_r2", "attention_r3"),
    6: ("conv1_1", "conv2_1", "attention_r2", "attention_r2", "attention_r3", "attention_r3"),
    8: ("conv1_1",) * 2 + ("conv2_1",) * 2 + ("attention_r2",) * 2 + ("attention_r3",) * 2,
}
# And of a Swin, by stage: its heads in the order of the stage's exits.
_LGVIT_SWIN = {
    1: ("conv1_1",) * 18,
    2: ("conv1_1", "conv2_1", "conv2_1", "attention_r1", "attention_r1", "attention_r2"),
    3: ("attention_r2",),
}
# What the authors call the other heads.
_HEADS = {"linear": "mlp", "vit": "encoder", "self_attention": "attention", "conv_normal": "conv"}
_SWIN_TYPES = ("LGViT", "linear", "vit")
_LAYERS = "swin.encoder.layers"


def authors_config(raw: dict[str, Any], state: dict[str, Tensor]) -> LGViTConfig:
    """The authors' ``config.json`` of an LGViT.

    Args:
        raw: ``config.json``.
        state: the weights, which tell how wide an encoder head is.

    Raises:
        CheckpointError: not such a file, or one that contradicts itself.
    """
    kind, model_type = raw.get("backbone"), raw.get("model_type")
    known = isinstance(kind, str | None) and kind in _BACKBONES
    if not known or (kind is None) != (model_type == "swin"):
        raise CheckpointError(
            'expected an LGViT config.json with backbone "ViT" or "DeiT", or model_type "swin" and '
            f"no backbone; found backbone {_short(kind)}, model_type {_short(model_type)}"
        )
    family = _BACKBONES[kind]
    try:
        config = transformer(raw, family)
        if family == "swin":
            exits = _swin_exits(raw, config, state)
        else:
            blocks = _list(raw, "position_exits", "[4,5,6]")
            if raw.get("num_early_exits", len(blocks)) != len(blocks):
                raise ConfigError(_miscounted(raw["num_early_exits"], blocks))
            highway = raw.get("highway_type")
            names = _LGVIT.get(len(blocks)) if highway == "LGViT" else None
            exits = [
                _exit(block, name)
                for block, name in zip(blocks, names or [highway] * len(blocks), strict=True)
            ]
        return config.replace(exits=tuple(exits))
    except ConfigError as error:
        raise _wrong(error) from None


def _wrong(error: ConfigError) -> CheckpointError:
    return CheckpointError(f"config.json: {str(error).replace('config: ', '')}")


def _list(raw: dict[str, Any], name: str, example: str) -> list[Any]:
    """A list like ``example``, which the authors wrote as a string; never evaluated."""
    value = raw.get(name)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            pass  # reported below with what was found
    rows = value if isinstance(value, list) else [None]
    if not (all(map(_numbers, rows)) if example.startswith("[[") else _numbers(value)):
        raise ConfigError(f'{name} must be a list such as "{example}", found {_short(value)}')
    return rows


def _numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(v) is int for v in value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _miscounted(count: object, positions: list[Any]) -> str:
    return f"num_early_exits {_short(count)} but position_exits {_short(positions)}"


def _swin_exits(
    raw: dict[str, Any], config: LGViTConfig, state: dict[str, Tensor]
) -> list[ExitConfig]:
    """Exits whose positions are local to their stage."""
    stages, highway = _list(raw, "position_exits", "[[],[2],[3,6],[1]]"), raw.get("highway_type")
    if len(stages) != len(config.depths):
        raise ConfigError(
            f"position_exits of a swin must be one list per stage, {len(config.depths)} of them, "
            f"found {_short(stages)}"
        )
    if highway not in _SWIN_TYPES:
        raise ConfigError(
            f"highway_type of a swin must be one of {', '.join(_SWIN_TYPES)}, found "
            f"{_short(highway)}"
        )
    counts = _list(raw, "num_early_exits", "[0,1,2,1]") if "num_early_exits" in raw else None
    if counts not in (None, [len(stage) for stage in stages]):
        raise ConfigError(_miscounted(counts, stages))
    exits, before = [], 0
    for stage, (places, depth) in enumerate(zip(stages, config.depths, strict=True)):
        if not all(1 <= place <= depth for place in places):
            raise ConfigError(
                f"position_exits of stage {stage + 1} must lie in its blocks 1..{depth}, found "
                f"{_short(places)}"
            )
        names: tuple[object, ...] = (highway,) * len(places)
        if highway == "LGViT":
            names = _LGVIT_SWIN.get(stage, ())[: len(places)]
        if len(names) < len(places):
            raise ConfigError(
                f"the authors' LGViT has {len(_LGVIT_SWIN.get(stage, ()))} exits at most in stage "
                f"{stage + 1}, found {len(places)}"
            )
        for k, (place, name) in enumerate(zip(places, names, strict=True)):
            exit, head = _exit(before + place, name), f"{_LAYERS}.{stage}.highway.{k}"
            if HEAD_SIZES[exit.head] == "width":
                # The authors' encoder here is a DeiT's, 3072 wide whatever the stage.
                bias = state.get(f"{head}.layer.intermediate.dense.bias")
                width = bias.numel() if bias is not None else 0
                exit = ExitConfig(exit.block, exit.head, width=width)
            exits.append(exit)
        before += depth
    return exits


def _exit(block: int, name: object) -> ExitConfig:
    if name == "conv1_1":
        return ExitConfig(block, "lph", kernel=3)
    if name == "conv2_1":
        return ExitConfig(block, "lph", kernel=0)
    if isinstance(name, str):
        if name in _HEADS:
            return ExitConfig(block, _HEADS[name])
        window = name.removeprefix("attention_r")
        if name.startswith("attention_r") and window.isdecimal() and len(window) == 1:
            return ExitConfig(block, "gah", window=int(window))
    raise ConfigError(
        f"highway_type {_short(name)} is not supported; expected LGViT (2, 4, 6 or 8 exits), "
        f"conv1_1, conv2_1, attention_rS, {', '.join(_HEADS)}"
    )


def attached(
    state: dict[str, Tensor], raw: dict[str, Any], config: LGViTConfig
) -> dict[str, Tensor]:
    """The weights without heads that no exit has: the authors make six in a Swin's third stage."""
    if not config.depths or raw.get("highway_type") != "LGViT" or len(config.depths) < 3:
        return state
    first, end = sum(config.depths[:2]), sum(config.depths[:3])
    count = sum(first < exit.block <= end for exit in config.exits)
    surplus = tuple(f"{_LAYERS}.2.highway.{k}." for k in range(count, len(_LGVIT_SWIN[2])))
    return {name: tensor for name, tensor in state.items() if not name.startswith(surplus)}


def huggingface_config(
    raw: dict[str, Any], state: dict[str, Tensor], preprocessor: dict[str, Any]
) -> LGViTConfig:
    """A Hugging Face ``config.json`` of a plain ViT, DeiT or Swin classifier.

    Args:
        raw: ``config.json``.
        state: the weights, whose names tell one classifier from two.
        preprocessor: ``preprocessor_config.json``, or empty for the family's own preprocessing.

    Raises:
        CheckpointError: not such a file.
    """
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in _BACKBONES.values():
        raise CheckpointError(
            f"expected config.json with model_type vit, deit or swin, found {_short(family)}"
        )
    try:
        config = transformer(raw, family, 2 if "cls_classifier.weight" in state else 1)
        return config.replace(preprocess=huggingface_preprocess(preprocessor, config))
    except ConfigError as error:
        raise _wrong(error) from None


def transformer(raw: dict[str, Any], family: str, classifiers: int | None = None) -> LGViTConfig:
    """A backbone's configuration in Hugging Face's words; absent ones have its defaults.

    Raises:
        ConfigError: with everything that is wrong.
    """
    names = _labels(raw)
    size = raw.get("image_size", 224)
    if raw.get("hidden_act", "gelu") != "gelu":
        raise ConfigError(f"hidden_act must be gelu, found {_short(raw['hidden_act'])}")
    known = type(size) is int and 0 < size <= MAX_SIZE // 2
    tokens = {"vit": 1, "deit": 2, "swin": 0}[family]
    fields = {
        "family": family,
        "image_size": size,
        "num_classes": raw.get("num_labels", len(names) or 2),
        "prefix_tokens": tokens,
        "classifiers": classifiers or max(tokens, 1),
        "qkv_bias": raw.get("qkv_bias", True),
        # Placeholders such as LABEL_0 are no names.
        "labels": [] if all(n.startswith("LABEL_") for n in names) else list(names),
        "preprocess": {"resize": usual_resize(size) if known else 256},
        **(_swin(raw) if family == "swin" else _vit(raw)),
    }
    return LGViTConfig.from_json(fields)


def _labels(raw: dict[str, Any]) -> tuple[str, ...]:
    labels = raw.get("id2label")
    if not isinstance(labels, dict):
        return ()
    try:
        names = {int(key): str(name) for key, name in labels.items()}
    except ValueError:
        names = {}
    if sorted(names) != list(range(len(labels))):
        raise ConfigError("id2label must map class numbers to names, from 0 on")
    return tuple(names[i] for i in range(len(names)))


def _vit(raw: dict[str, Any]) -> dict[str, Any]:
    return {
        "patch_size": raw.get("patch_size", 16),
        "hidden_size": raw.get("hidden_size", 768),
        "num_blocks": raw.get("num_hidden_layers", 12),
        "num_heads": raw.get("num_attention_heads", 12),
        "intermediate_size": raw.get("intermediate_size", 3072),
        "layer_norm_eps": raw.get("layer_norm_eps", 1e-12),
    }


def _swin(raw: dict[str, Any]) -> dict[str, Any]:
    dim, ratio = raw.get("embed_dim", 96), raw.get("mlp_ratio", 4.0)
    depths, heads = raw.get("depths", [2, 2, 6, 2]), raw.get("num_heads", [3, 6, 12, 24])
    if raw.get("use_absolute_embeddings", False):
        raise ConfigError("use_absolute_embeddings is not supported: expected false")
    if type(dim) is not int or not 1 <= dim <= MAX_SIZE:
        raise ConfigError(f"embed_dim {_short(dim)} must be a whole number in 1..{MAX_SIZE}")
    number = isinstance(ratio, (int, float)) and not isinstance(ratio, bool)
    if not number or not 0 < ratio <= MAX_SIZE or ratio * dim != int(ratio * dim):
        raise ConfigError(f"mlp_ratio {_short(ratio)} must make a whole number of embed_dim {dim}")
    for name, values in (("depths", depths), ("num_heads", heads)):
        if not (_numbers(values) and values):
            raise ConfigError(f"{name} must be a list such as [2, 2, 6, 2], found {_short(values)}")
    return {
        "patch_size": raw.get("patch_size", 4),
        "hidden_size": dim,
        "num_blocks": sum(depths),
        "num_heads": heads[0],
        "intermediate_size": int(ratio * dim),
        "layer_norm_eps": raw.get("layer_norm_eps", 1e-5),
        "depths": depths,
        "stage_heads": heads,
        "window_size": raw.get("window_size", 7),
    }
