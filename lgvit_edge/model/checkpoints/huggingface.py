"""Reads Hugging Face's backbones: ``config.json``, ``preprocessor_config.json`` and weights.

Transformers 5 renames modules in memory but saves their old names, which ``saved`` restores. What
contradicts itself or is not supported raises ``CheckpointError``, with everything that is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lgvit_edge._support.optional import resolve
from lgvit_edge.architecture.config import MAX_SIZE, LGViTConfig
from lgvit_edge.architecture.families import FAMILIES, Family
from lgvit_edge.architecture.sizes import ACTIVATIONS, POOLINGS, activation_named
from lgvit_edge.errors import CheckpointError, ConfigError
from lgvit_edge.images.spec import Preprocess, usual_resize
from lgvit_edge.model.backbones.vit import interpolated
from lgvit_edge.model.checkpoints import swinv2
from lgvit_edge.model.checkpoints.huggingface_images import (
    huggingface_preprocess,
    read_processor,
    say_assumed,
    side_made,
)
from lgvit_edge.model.checkpoints.huggingface_vits import FORMS, completed, named, plain
from lgvit_edge.model.checkpoints.weights import (
    Source,
    State,
    fitted,
    places,
    sources_of,
)
from lgvit_edge.model.heads.base import Names, block_names, classifier_names, within
from lgvit_edge.model.lgvit import LGViT

_RENAMED = (
    (r"^(vit|deit)\.layers\.", r"\1.encoder.layer."),
    (r"^(swin\..*\.attention)\.([qkv])_proj\.", r"\1.self.\2_proj."),
    (r"^((?:vit|deit)\..*\.attention)\.([qkv])_proj\.", r"\1.attention.\2_proj."),
    (r"\.q_proj\.", ".query."),
    (r"\.k_proj\.", ".key."),
    (r"\.v_proj\.", ".value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.attention\.relative_position_bias\.", ".attention.self."),
    (r"^((?:vit|deit|swin)\..*)\.mlp\.fc1\.", r"\1.intermediate.dense."),
    (r"^((?:vit|deit|swin)\..*)\.mlp\.fc2\.", r"\1.output.dense."),
)


def prefixes() -> list[str]:
    """Returns what names of weights begin with, by family and ``model_type``."""
    return sorted({form.prefix for form in FORMS.values()} | {f"{name}." for name in model_types()})


def model_types() -> dict[str, Family]:
    """Returns the supported families by Hugging Face's ``model_type``."""
    return {name: family for family in FAMILIES.values() for name in family.model_types}


def backbone(
    raw: dict[str, Any], state: State, path: Path, classes: int | None, note: Callable[[str], None]
) -> LGViT:
    """Returns the backbone in a folder, whose ``config.json`` is ``raw``.

    Weights without a classifier get one of ``classes`` classes, where transformers' own classifier
    of this ``model_type`` has it, or, if there is none, on the class token.

    Raises:
        CheckpointError: not such a folder, a part that is not supported, or no classifier and no
            number of classes.
    """
    preprocessor = read_processor(path)
    model_type, fresh = str(raw.get("model_type")), None
    if model_type not in FORMS:
        state = saved(state)
    if not any(f"{name}.weight" in state for name in ("classifier", "cls_classifier")):
        if classes is None:
            raise CheckpointError(
                f"{path} has no classifier: expected classifier.weight, as transformers' "
                "...ForImageClassification have it; to train one, run: lgvit-edge train --backbone "
                f"{path} --order joint"
            )
        fresh = classes
    saved_config = huggingface_config(raw, state, fresh)
    config = _prepared(saved_config, raw, preprocessor)
    say_assumed(preprocessor, config, path, note)
    prefix = model_type
    if model_type in FORMS:
        prefix = FORMS[model_type].prefix.removesuffix(".")
        about, states = completed(raw), config if config.rotation else saved_config
        state = plain(named(state, about, path, note), states, about, fresh=fresh is not None)
        if config.grid != states.grid:
            name = f"{prefix}.embeddings.position_embeddings"
            state[name] = _interpolated(state, name, states, config, FORMS[model_type].antialias)
            note(
                f"positions for {states.image_size} pixels are interpolated to {config.image_size}"
            )
    elif fresh is not None:
        state = {f"{prefix}.{name.removeprefix(f'{prefix}.')}": t for name, t in state.items()}
    if fresh is not None:
        width = config.hidden_shape(config.num_blocks)[1] * (2 if config.pooling == "both" else 1)
        state |= {
            "classifier.weight": torch.zeros(fresh, width),
            "classifier.bias": torch.zeros(fresh),
        }
        note(
            f"{path} has no classifier; one of {fresh} classes starts from zeros, on "
            f"{POOLINGS[config.pooling]}"
        )
    state = tabled(raw, state, config)
    return fitted(config, state, lambda model: huggingface_names(model, prefix), path)


def _prepared(
    config: LGViTConfig, raw: dict[str, Any], preprocessor: dict[str, Any]
) -> LGViTConfig:
    """Returns the configuration with its preprocessing, whose size counts where it may.

    A DINOv2 holds the positions of 518 pixels, and its images are made 224 wide: transformers
    interpolates the positions.
    """
    form = FORMS.get(raw["model_type"])
    try:
        if form is None:
            preprocess = huggingface_preprocess(preprocessor, config)
            return config.replace(preprocess=preprocess)
        if form.interpolates and (side := side_made(preprocessor, form.processor)) is not None:
            config = config.replace(image_size=side, preprocess=Preprocess(resize=side))
        preprocess = huggingface_preprocess(preprocessor, config, form.processor, form.pixels)
        return config.replace(preprocess=preprocess)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def _interpolated(
    state: State, name: str, old: LGViTConfig, new: LGViTConfig, antialias: bool
) -> torch.Tensor:
    position = state.get(name)
    if position is None or position.shape != (1, *old.hidden_shape(0)):
        found = "none" if position is None else tuple(position.shape)
        raise CheckpointError(f"{name} must be {(1, *old.hidden_shape(0))}, found {found}")
    return interpolated(position, old.prefix_tokens, old.grid, new.grid, antialias=antialias)


def huggingface_config(raw: dict[str, Any], state: State, fresh: int | None = None) -> LGViTConfig:
    """Returns the configuration in Hugging Face's ``config.json`` of a plain backbone.

    The names in ``state`` tell one classifier from two; ``fresh`` is the number of classes of one
    that is to be made.

    Raises:
        CheckpointError: not such a file.
    """
    model_type, families = raw.get("model_type"), model_types()
    if not isinstance(model_type, str) or model_type not in families:
        raise CheckpointError(
            f"expected config.json with model_type {', '.join(families)}, found {short(model_type)}"
        )
    try:
        classifiers = 2 if "cls_classifier.weight" in state else 1
        return transformer(raw, families[model_type], classifiers, fresh)
    except ConfigError as error:
        raise wrong_config(error) from None


def transformer(
    raw: dict[str, Any], family: Family, classifiers: int | None = None, fresh: int | None = None
) -> LGViTConfig:
    """Returns the configuration in Hugging Face's fields; absent ones have its defaults.

    Without a number of ``classifiers`` there is one per prefix token. ``fresh`` is the number of
    classes of a new classifier.
    """
    if raw.get("model_type") in FORMS:
        raw = completed(raw)
    names = () if fresh else _labels(raw)
    if not fresh and raw.get("problem_type") == "multi_label_classification":
        raise ConfigError(
            "problem_type multi_label_classification is not supported: expected one class an image"
        )
    size = _square(raw, "image_size", 224)
    activation = activation_named(str(raw.get("hidden_act", "gelu")))
    if activation is None:
        raise ConfigError(
            f"hidden_act must be one of {', '.join(ACTIVATIONS)}, found {short(raw['hidden_act'])}"
        )
    valid = type(size) is int and 0 < size <= MAX_SIZE // 2
    own = resolve(family.huggingface)(raw)
    fields = {
        "family": family.name,
        "image_size": size,
        "patch_size": _square(raw, "patch_size", 4),
        "activation": activation,
        "num_classes": fresh or raw.get("num_labels", len(names) or 2),
        "classifiers": classifiers or max(own["prefix_tokens"], 1),
        "qkv_bias": raw.get("qkv_bias", True),
        # Placeholders such as LABEL_0 are dropped.
        "labels": [] if all(re.fullmatch(r"LABEL_\d+", n) for n in names) else list(names),
        "preprocess": {"resize": usual_resize(size) if valid else 256},
        **own,
    }
    return LGViTConfig.from_json(fields)


def _square(raw: dict[str, Any], name: str, default: int) -> Any:
    """Returns the side of what is square; Hugging Face also writes height and width."""
    value = raw.get(name, default)
    if isinstance(value, list) and len(value) == 2:
        if value[0] != value[1]:
            raise ConfigError(f"{name} must be square, found {value[0]} x {value[1]}")
        return value[0]
    return value


def _labels(raw: dict[str, Any]) -> tuple[str, ...]:
    labels = raw.get("id2label")
    if not isinstance(labels, dict):
        return ()
    try:
        names = {int(key): str(name) for key, name in labels.items() if name is not None}
    except ValueError:
        names = {}
    if sorted(names) != list(range(len(labels))):
        raise ConfigError(
            f"id2label must map class numbers to names, from 0 on, found {short(labels)}"
        )
    return tuple(names[i] for i in range(len(names)))


def swin_fields(raw: dict[str, Any]) -> dict[str, Any]:
    """Returns a Swin's own fields from ``config.json``."""
    dim, ratio = raw.get("embed_dim", 96), raw.get("mlp_ratio", 4.0)
    depths, heads = raw.get("depths", [2, 2, 6, 2]), raw.get("num_heads", [3, 6, 12, 24])
    if raw.get("use_absolute_embeddings", False):
        raise ConfigError("use_absolute_embeddings is not supported: expected false")
    if type(dim) is not int or not 1 <= dim <= MAX_SIZE:
        raise ConfigError(f"embed_dim {short(dim)} must be a whole number in 1..{MAX_SIZE}")
    number = isinstance(ratio, (int, float)) and not isinstance(ratio, bool)
    if not number or not 0 < ratio <= MAX_SIZE or ratio * dim != int(ratio * dim):
        raise ConfigError(f"mlp_ratio {short(ratio)} must make a whole number of embed_dim {dim}")
    for name, values in (("depths", depths), ("num_heads", heads)):
        if not (whole_numbers(values) and values):
            raise ConfigError(f"{name} must be a list such as [2, 2, 6, 2], found {short(values)}")
    return {
        "prefix_tokens": 0,
        "pooling": "mean",
        "hidden_size": dim,
        "num_blocks": sum(depths),
        "num_heads": heads[0],
        "intermediate_size": int(ratio * dim),
        "layer_norm_eps": raw.get("layer_norm_eps", 1e-5),
        "depths": depths,
        "stage_heads": heads,
        "window_size": raw.get("window_size", 7),
    }


def swinv2_fields(raw: dict[str, Any]) -> dict[str, Any]:
    """Returns a Swin V2's own fields from ``config.json``."""
    fields = swin_fields(raw)
    size, patch = _square(raw, "image_size", 224), _square(raw, "patch_size", 4)
    window, stages = fields["window_size"], len(fields["depths"])
    if all(type(number) is int and number > 0 for number in (window, size, patch)) and stages < 9:
        # transformers counts a stage's windows on a map whose odd sides were rounded down.
        for halvings in range(stages):
            map_side = size // patch >> halvings
            if map_side << halvings != size // patch and map_side <= window:
                raise ConfigError(
                    f"image_size {size} makes maps of odd sides that are not larger than windows "
                    f"of {window}, which is not supported: expected a multiple of "
                    f"{patch << stages - 1}"
                )
    return fields | {"window_mask": 200}  # transformers adds its mask of -100 twice


def tabled(raw: dict[str, Any], state: State, config: LGViTConfig) -> State:
    """Returns weights whose relative positions are tables; see ``swinv2.tabled``."""
    if raw.get("model_type") != "swinv2":
        return state
    said = raw.get("pretrained_window_sizes")
    attention = "swinv2.encoder.layers.{}.blocks.{}.attention.self"
    mlp = "continuous_position_bias_mlp"
    return swinv2.tabled(
        state, config, [0] * len(config.depths) if said is None else said, attention, mlp
    )


def wrong_config(error: ConfigError) -> CheckpointError:
    """Returns the error for a wrong ``config.json``."""
    return CheckpointError(f"config.json: {str(error).replace('config: ', '')}")


def whole_numbers(value: object) -> bool:
    """Says whether a value is a list of whole numbers."""
    return isinstance(value, list) and all(type(v) is int for v in value)


def short(value: object) -> str:
    """Returns a value as text for messages, cut to 100 characters."""
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def saved(state: State) -> State:
    """Returns a Hugging Face state dict under the names that are saved to files."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def huggingface_names(model: LGViT, prefix: str) -> dict[str, Source]:
    """Returns where each of our parameters is; ``prefix`` is that of the backbone's names."""
    config = model.config
    block = block_names("self" if config.depths else "attention")
    block["attention.relative_bias.table"] = "attention.attention.relative_position_bias_table"
    names: Names = {
        "backbone.embedding.patch": f"{prefix}.embeddings.patch_embeddings.projection",
        "backbone.embedding.norm": f"{prefix}.embeddings.norm",
        "backbone.embedding.position": f"{prefix}.embeddings.position_embeddings",
        "backbone.final.norm": f"{prefix}.layernorm",
    }
    for i, (stage, place) in enumerate(places(config)):
        theirs = f"{prefix}.encoder.layer.{i}"
        if config.depths:
            theirs = f"{prefix}.encoder.layers.{stage}.blocks.{place}"
            names[f"backbone.blocks.{i}.merge"] = f"{prefix}.encoder.layers.{stage - 1}.downsample"
        names |= within(f"backbone.blocks.{i}", block, theirs)
    names |= classifier_names(config.classifiers, "backbone.final.classifier")
    second = "distillation_token" if config.family == "deit" else "register_tokens"
    tokens = ["cls_token", *([second] if config.prefix_tokens > 1 else [])]
    tokens = tokens if config.prefix_tokens else []
    return sources_of(model, names, [f"{prefix}.embeddings.{token}" for token in tokens])
