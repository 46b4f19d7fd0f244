"""Preprocessing as others write it down: Hugging Face's image processors, timm's configurations."""

from __future__ import annotations

import dataclasses
from typing import Any

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.bundle.codec import from_json
from lgvit_edge.errors import ConfigError
from lgvit_edge.images.spec import IMAGENET_PREPROCESS, Preprocess, usual_resize

_RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers

_PILLOW = {name: number for number, name in _RESAMPLE.items()}


def usual_preprocess(family: str, image_size: int) -> Preprocess:
    """What a family's published weights were trained with."""
    usual = Preprocess() if family == "vit" else IMAGENET_PREPROCESS
    return dataclasses.replace(usual, resize=usual_resize(image_size))


def huggingface_preprocess(raw: dict[str, Any], config: LGViTConfig) -> Preprocess:
    """What ``preprocessor_config.json`` says, or the family's own where it is empty.

    Raises:
        ConfigError: it contradicts itself or the model, or asks for what we do not do.
    """
    usual = usual_preprocess(config.family, config.image_size)
    if not raw:
        return usual
    where = "preprocessor_config.json"
    crop = _side(raw, "crop_size") if raw.get("do_center_crop", "crop_size" in raw) else None
    side, squash = usual.resize, False
    if raw.get("do_resize", True) and "size" in raw:
        # Of one number and of height and width both sides become it, whatever the image's shape.
        squash = not (isinstance(raw["size"], dict) and "shortest_edge" in raw["size"])
        side = _side(raw, "size")
    final = crop or (side if squash else config.image_size)
    if final != config.image_size:
        raise ConfigError(
            f"{where} makes images of {final} x {final}, the model takes {config.image_size}"
        )
    factor = raw.get("rescale_factor", 1 / 255) if raw.get("do_rescale", True) else 1.0
    if not isinstance(factor, (int, float)) or not 0.00391 < factor < 0.00393:
        raise ConfigError(f"{where}: pixels must be scaled by 1/255 before they are normalised")
    resample = raw.get("resample", _PILLOW[usual.interpolation])
    if type(resample) is not int or resample not in _RESAMPLE:
        raise ConfigError(
            f"{where}: resample must be 0 (nearest), 2 (bilinear) or 3 (bicubic), found "
            f"{str(resample)[:60]!r}"
        )
    normalised = raw.get("do_normalize", True)
    fields = {
        "resize": side,
        "interpolation": _RESAMPLE[resample],
        "mean": raw.get("image_mean", usual.mean) if normalised else (0.0, 0.0, 0.0),
        "std": raw.get("image_std", usual.std) if normalised else (1.0, 1.0, 1.0),
        "squash": squash,
    }
    return from_json(Preprocess, fields, where=where, error=ConfigError)


def _side(raw: dict[str, Any], name: str) -> int:
    size = raw.get(name)
    if isinstance(size, dict):
        sides = [size[key] for key in ("shortest_edge", "height", "width") if key in size]
        size = sides[0] if sides and all(side == sides[0] for side in sides) else size
    if type(size) is not int:
        raise ConfigError(
            f"preprocessor_config.json: {name} must be one number, a shortest_edge, or height and "
            f"width alike; found {size!r}"
        )
    return size


def timm_preprocess(raw: dict[str, Any], usual: Preprocess, image_size: int) -> Preprocess:
    """What the ``pretrained_cfg`` of a timm model says.

    Raises:
        ConfigError: it says what we do not do.
    """
    share = raw.get("crop_pct")
    known = isinstance(share, (int, float)) and 0.1 <= share <= 1
    fields = {
        "resize": int(image_size / share) if known and share is not None else usual.resize,
        "interpolation": raw.get("interpolation", usual.interpolation),
        "mean": raw.get("mean", usual.mean),
        "std": raw.get("std", usual.std),
    }
    return from_json(Preprocess, fields, where="pretrained_cfg", error=ConfigError)
