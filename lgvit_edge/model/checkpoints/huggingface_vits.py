"""How Hugging Face's ViTs differ: in ``config.json``, and in the names of their weights.

Transformers gives each ``model_type`` its own classes; here each is one ``Form`` of the one ViT.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lgvit_edge.architecture.config import MAX_SIZE, LGViTConfig
from lgvit_edge.errors import CheckpointError, ConfigError
from lgvit_edge.model.checkpoints.huggingface_images import CLIP, IMAGENET, Pixels
from lgvit_edge.model.checkpoints.weights import State, add_bias, scale_layer

Fields = dict[str, Any]


@dataclass(frozen=True)
class Form:
    """One ``model_type`` of a ViT.

    Attributes:
        prefix: of its names of weights; a model without a classifier has none.
        defaults: of ``config.json``, where they are not ViT's.
        fields: the configuration's fields that are its own, from ``config.json``.
        dropped: names of weights that its classifier does not use.
        interpolates: whether transformers runs it at the size that the preprocessing makes.
        antialias: whether it does so with antialiasing.
        processor: of ``huggingface_images``: what prepares its images if the file names none.
        pixels: mean and std of published weights, where there is no file; None: the family's.
    """

    prefix: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fields: Callable[[Mapping[str, Any]], Fields] = lambda raw: {}
    dropped: str = r"mask_token$"
    interpolates: bool = False
    antialias: bool = False
    processor: str = "ViT"
    pixels: Pixels | None = None


_DEFAULTS = {
    **{"patch_size": 16, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    **{"intermediate_size": 3072, "hidden_act": "gelu", "layer_norm_eps": 1e-12},
    **{"image_size": 224, "qkv_bias": True},
}
# What ViTs call the parts of a ViT, below their prefix; applied in this order.
_NAMES = (
    (r"^(?:encoder\.|model\.)?layers?\.", "encoder.layer."),
    (r"^(?:encoder\.relative|shared)_position_bias\.", "relative_position_bias."),
    (r"\.self_attn\.", ".attention."),
    (r"\.q_proj\.", ".query."),
    (r"\.k_proj\.", ".key."),
    (r"\.v_proj\.", ".value."),
    (r"\.attention\.(?:attention\.)?(query|key|value)\.", r".attention.attention.\1."),
    (r"\.attention\.(?:out|o)_proj\.", ".attention.output.dense."),
    (r"(\.layer\.\d+)(?:\.attention)*\.relative_position_bias\.", r"\1.attention.attention."),
    (r"\.(?:norm1|layer_norm1)\.", ".layernorm_before."),
    (r"\.(?:norm2|layer_norm2)\.", ".layernorm_after."),
    (r"\.mlp\.(?:fc1|weights_in|up_proj)\.", ".intermediate.dense."),
    (r"\.mlp\.gate_proj\.", ".intermediate.gate."),
    (r"\.mlp\.(?:fc2|weights_out|down_proj)\.", ".output.dense."),
    (r"\.(?:lambda_|layer_scale)([12])(?:\.lambda1)?$", r".layer_scale\1"),
    (r"^embeddings\.class_embedding$", "embeddings.cls_token"),
    (r"^embeddings\.position_embedding\.weight$", "embeddings.position_embeddings"),
    (
        r"^embeddings\.patch_embeddings?\.(weight|bias)$",
        r"embeddings.patch_embeddings.projection.\1",
    ),
    (r"^pre_layrnorm\.", "embeddings.norm."),
    (r"^(?:post_layernorm|norm)\.", "layernorm."),
)
_CLASSIFIERS = ("classifier.", "cls_classifier.", "distillation_classifier.")
_BIAS = "relative_position_bias_table"


def _dinov2(raw: Mapping[str, Any]) -> Fields:
    dim, ratio = _whole(raw, "hidden_size"), _whole(raw, "mlp_ratio")
    width, gated = dim * ratio, bool(raw.get("use_swiglu_ffn", False))
    if gated:  # two thirds, rounded up to a multiple of 8
        width = -(-(width * 2 // 3) // 8) * 8
    return {
        "prefix_tokens": 1 + _whole(raw, "num_register_tokens"),
        "pooling": "both",
        "intermediate_size": width,
        "gated": gated,
        **({"activation": "silu"} if gated else {}),
    }


def _dinov3(raw: Mapping[str, Any]) -> Fields:
    if (base := raw["rope_theta"]) != 100:
        raise ConfigError(f"rope_theta {base!r} is not supported: expected 100")
    return {
        "prefix_tokens": 1 + _whole(raw, "num_register_tokens"),
        "rotation": "dinov3",
        "gated": bool(raw["use_gated_mlp"]),
        "qkv_bias": any(raw[f"{part}_bias"] for part in ("query", "key", "value")),
    }


def _beit(raw: Mapping[str, Any]) -> Fields:
    own, shared = (raw.get(f"use_{kind}relative_position_bias") for kind in ("", "shared_"))
    mean = bool(raw["use_mean_pooling"])
    return {
        "pooling": "mean" if mean else "token",
        "final_norm": "pooled" if mean else "tokens",
        "relative_positions": bool(own or shared),
    }


def _clip(raw: Mapping[str, Any]) -> Fields:
    return {"pooling": "mean", "final_norm": "", "embedding_norm": True}


def _mean(raw: Mapping[str, Any]) -> Fields:
    return {"prefix_tokens": 0, "pooling": "mean"}


def _whole(raw: Mapping[str, Any], name: str) -> int:
    value = raw[name]
    if type(value) is not int or not 0 <= value <= MAX_SIZE:
        raise ConfigError(f"{name} must be a whole number in 0..{MAX_SIZE}, found {value!r:.99}")
    return value


_TWO_TOWERS = r"^(text_model|visual_projection|text_projection|logit_scale|logit_bias)\b"
_CLIP = Form(
    "vision_model.",
    {"patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    _clip,
    rf"^post_layernorm\.|{_TWO_TOWERS}",
    processor="CLIP",
    pixels=CLIP,
)
_SIGLIP = Form(
    "vision_model.",
    {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
    _mean,
    rf"^head\.|{_TWO_TOWERS}",
    processor="Siglip",
)
_BEITS = ("beit", "data2vec-vision")
_BEIT = {
    **{"use_mean_pooling": True, "use_absolute_position_embeddings": False},
    **{"use_relative_position_bias": False, "use_shared_relative_position_bias": False},
    "layer_scale_init_value": 0.1,
}
_DINOV2 = {"mlp_ratio": 4, "layer_norm_eps": 1e-6}
FORMS = {
    "vit": Form("vit.", dropped=r"^pooler\.dense\.|mask_token$"),
    "deit": Form(
        "deit.",
        fields=lambda raw: {"prefix_tokens": 2},
        dropped=r"^pooler\.dense\.",
        processor="DeiT",
    ),
    "vit_mae": Form("vit.", dropped=r"^decoder\.", pixels=IMAGENET),
    "vit_msn": Form("vit.", {"layer_norm_eps": 1e-6}, pixels=IMAGENET),
    "ijepa": Form("ijepa.", fields=_mean),
    "dinov2": Form(
        "dinov2.",
        {**_DINOV2, "patch_size": 14, "num_register_tokens": 0},
        _dinov2,
        interpolates=True,
        processor="Bit",
        pixels=IMAGENET,
    ),
    "dinov2_with_registers": Form(
        "dinov2_with_registers.",
        {**_DINOV2, "num_register_tokens": 4},
        _dinov2,
        interpolates=True,
        antialias=True,
        processor="Bit",
        pixels=IMAGENET,
    ),
    "dinov3_vit": Form(
        "dinov3_vit.",
        {
            **{"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6},
            **{"layer_norm_eps": 1e-5, "rope_theta": 100.0, "num_register_tokens": 0},
            **{"query_bias": True, "key_bias": False, "value_bias": True},
            **{"proj_bias": True, "mlp_bias": True, "use_gated_mlp": False},
        },
        _dinov3,
        interpolates=True,
        processor="DINOv3ViT",
        pixels=IMAGENET,
    ),
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "beit": Form("beit.", _BEIT, _beit, processor="Beit"),
    "data2vec-vision": Form("data2vec_vision.", _BEIT, _beit, processor="Beit"),
}


def completed(raw: dict[str, Any]) -> dict[str, Any]:
    """Returns ``config.json`` with transformers' defaults, of the vision tower if there are two."""
    towers = [raw[name] for name in ("vision_config", "vision_config_dict") if name in raw]
    if any(isinstance(part, dict) for part in towers):
        tower: dict[str, Any] = {}
        for part in towers:  # the second is that of older files, and counts, as in transformers
            tower |= part if isinstance(part, dict) else {}
        own = {name: raw[name] for name in ("id2label", "num_labels", "model_type") if name in raw}
        raw = {n: v for n, v in tower.items() if n not in ("id2label", "num_labels")} | own
    return _DEFAULTS | dict(FORMS[raw["model_type"]].defaults) | raw


def vit_fields(raw: dict[str, Any]) -> Fields:
    """Returns the own fields of a ViT from a ``config.json`` that is ``completed``."""
    return {
        "prefix_tokens": 1,
        "hidden_size": raw["hidden_size"],
        "num_blocks": raw["num_hidden_layers"],
        "num_heads": raw["num_attention_heads"],
        "intermediate_size": raw["intermediate_size"],
        "layer_norm_eps": raw["layer_norm_eps"],
        **FORMS[raw["model_type"]].fields(raw),
    }


def named(state: State, raw: Mapping[str, Any], path: Path, note: Callable[[str], None]) -> State:
    """Returns weights under the names of a ViT with this type's prefix.

    What the classifier does not use is left out, and larger parts are told to ``note``.

    Raises:
        CheckpointError: two names mean the same weight.
    """
    form, result, parts = FORMS[raw["model_type"]], State(), set()
    for full, tensor in state.items():
        name = full
        if not name.startswith(_CLASSIFIERS):
            name = name.removeprefix(form.prefix)
            if re.search(form.dropped, name) or not tensor.numel():
                parts.add(name.partition(".")[0])
                continue
            for pattern, replacement in _NAMES:
                name = re.sub(pattern, replacement, name)
            name = form.prefix + name
        if name in result:
            raise CheckpointError(
                f"{path} holds {name} twice, once as {full}; save the model again"
            )
        result[name] = tensor
    if towers := sorted(parts & {"text_model", "decoder", "head", "post_layernorm"}):
        note(f"left aside, as transformers' classifier does: {', '.join(towers)}")
    return result


def plain(
    state: State, config: LGViTConfig, raw: Mapping[str, Any], *, fresh: bool = False
) -> State:
    """Returns ``named`` weights as a plain ViT holds them.

    Parts that ``config.json`` does not have are left as they are, for ``fitted`` to refuse. With a
    ``fresh`` classifier, the norm in front of it may be missing.

    LayerScale is multiplied into the layer before it, a bias that blocks share is added to each of
    theirs, and a packed SwiGLU is taken apart. Positions and biases that this form of ViT lacks are
    zeros.

    Raises:
        CheckpointError: the shapes of these parts do not fit together.
    """
    prefix, result = FORMS[raw["model_type"]].prefix, dict(state)
    embeddings = f"{prefix}embeddings."
    token = result.get(f"{embeddings}cls_token")
    if token is not None and token.ndim == 1:
        result[f"{embeddings}cls_token"] = token[None, None]
    shared = None
    if raw.get("use_shared_relative_position_bias"):
        shared = result.pop(f"{prefix}relative_position_bias.{_BIAS}", None)
    for number in range(config.num_blocks):
        block = f"{prefix}encoder.layer.{number}"
        for part in _without_bias(raw, config):
            if (weight := result.get(f"{block}.{part}.weight")) is not None:
                result.setdefault(f"{block}.{part}.bias", weight.new_zeros(len(weight)))
        for which, layer in (("1", "attention.output.dense"), ("2", "output.dense")):
            scale = result.pop(f"{block}.layer_scale{which}", None) if _is_scaled(raw) else None
            if scale is not None:
                scale_layer(result, f"{block}.{layer}", scale)
        table = f"{block}.attention.attention.{_BIAS}"
        if shared is not None and (table in result) == bool(raw["use_relative_position_bias"]):
            add_bias(result, table, shared)
        _unpacked(result, block)
    patch = result.get(f"{embeddings}patch_embeddings.projection.weight")
    if patch is not None and config.embedding_norm:  # CLIP's patches have no bias
        bias = f"{embeddings}patch_embeddings.projection.bias"
        if bias in result:
            raise CheckpointError(f"{bias} is in the weights, but CLIP has none")
        result[bias] = patch.new_zeros(len(patch))
    if config.final_norm == "pooled":  # BEiT's
        for kind in ("weight", "bias"):
            norm = result.pop(f"{prefix}pooler.layernorm.{kind}", None)
            if norm is None and fresh:
                norm = torch.full((config.hidden_size,), float(kind == "weight"))
            if norm is not None:
                result[f"{prefix}layernorm.{kind}"] = norm
    if (position := _positions(result, embeddings, config, raw)) is not None:
        result[f"{embeddings}position_embeddings"] = position
    return result


def _is_scaled(raw: Mapping[str, Any]) -> bool:
    """Says whether this form of ViT has LayerScale."""
    return bool(raw.get("layer_scale_init_value")) or raw["model_type"].startswith("dinov")


def _unpacked(state: State, block: str) -> None:
    """Takes DINOv2's packed SwiGLU apart: the first half is activated."""
    last = state.get(f"{block}.output.dense.weight")
    for kind in ("weight", "bias"):
        inner = state.get(f"{block}.intermediate.dense.{kind}")
        if inner is None or last is None or last.ndim != 2:
            continue
        if inner.shape[:1] == (2 * last.shape[1],):
            gate, value = inner.chunk(2)
            state[f"{block}.intermediate.gate.{kind}"] = gate
            state[f"{block}.intermediate.dense.{kind}"] = value


def _without_bias(raw: Mapping[str, Any], config: LGViTConfig) -> list[str]:
    """Returns the layers of a block that have no bias, where others of their kind have."""
    if raw["model_type"] in _BEITS:
        return ["attention.attention.key"]
    if raw["model_type"] != "dinov3_vit":
        return []
    parts = [
        f"attention.attention.{part}"
        for part in ("query", "key", "value")
        if config.qkv_bias and not raw[f"{part}_bias"]
    ]
    if not raw["proj_bias"]:
        parts.append("attention.output.dense")
    if not raw["mlp_bias"]:
        parts += ["intermediate.dense", "intermediate.gate", "output.dense"]
    return parts


def _positions(
    state: State, embeddings: str, config: LGViTConfig, raw: Mapping[str, Any]
) -> torch.Tensor | None:
    """Returns positions of all tokens; those that this form of ViT lacks are zeros."""
    name = f"{embeddings}position_embeddings"
    position, (tokens, dim) = state.get(name), config.hidden_shape(0)
    beit = raw["model_type"] in _BEITS
    if config.rotation or (beit and not raw["use_absolute_position_embeddings"]):
        if position is not None:
            raise CheckpointError(
                f"{name} is in the weights, but config.json has no such positions"
            )
        return torch.zeros(1, tokens, dim)
    if position is None:
        return None
    if position.ndim == 2:
        position = position[None]
    if (registers := state.get(f"{embeddings}register_tokens")) is None or position.ndim != 3:
        return position
    none = position.new_zeros(1, registers.shape[1], position.shape[-1])
    return torch.cat([position[:, :1], none, position[:, 1:]], dim=1)
