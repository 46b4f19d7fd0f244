"""Reads Hugging Face's ``preprocessor_config.json``: how images are made ready for a model."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.architecture.families import FAMILIES
from lgvit_edge.bundle.codec import from_json
from lgvit_edge.errors import ConfigError
from lgvit_edge.images.spec import Preprocess
from lgvit_edge.model.checkpoints.weights import read_json

Pixels = tuple[tuple[float, float, float], tuple[float, float, float]]  # mean and std
HALF: Pixels = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET: Pixels = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP: Pixels = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
_RESAMPLE = dict(enumerate(("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")))
_WHERE = "preprocessor_config.json"


_SQUARE = {"size": {"height": 224, "width": 224}}
_CROPPED = {"do_center_crop": True, "crop_size": 224}


def _pixels(pixels: Pixels) -> dict[str, Any]:
    return {"image_mean": pixels[0], "image_std": pixels[1]}


# What transformers' classes assume where the file is silent.
_PROCESSORS: dict[str, dict[str, Any]] = {
    "ViT": {"resample": 2, **_SQUARE, **_pixels(HALF)},
    "DeiT": {"resample": 3, "size": {"height": 256, "width": 256}, **_CROPPED, **_pixels(HALF)},
    "Beit": {"resample": 3, **_SQUARE, **_pixels(HALF)},
    "Siglip": {"resample": 3, **_SQUARE, **_pixels(HALF)},
    "CLIP": {"resample": 3, "size": {"shortest_edge": 224}, **_CROPPED, **_pixels(CLIP)},
    "Bit": {"resample": 3, "size": {"shortest_edge": 224}, **_CROPPED, **_pixels(CLIP)},
    "DINOv3ViT": {"resample": 2, **_SQUARE, **_pixels(IMAGENET)},
}
_SHORTEST = ("Siglip", "CLIP", "Bit")  # a size of one number is that of the shorter side


def read_processor(folder: Path) -> dict[str, Any]:
    """Reads how a folder's images are made ready; returns nothing if no file tells it.

    ``processor_config.json`` of newer models comes first, as in transformers.
    """
    nested = read_json(folder / "processor_config.json", absent=True).get("image_processor")
    if isinstance(nested, dict):
        return nested
    return read_json(folder / _WHERE, absent=True)


def huggingface_preprocess(
    raw: dict[str, Any], config: LGViTConfig, processor: str = "ViT", pixels: Pixels | None = None
) -> Preprocess:
    """Returns what ``preprocessor_config.json`` says.

    ``processor`` is that of the model's type, for a file that names none. If it is empty, the
    family's usual preprocessing is returned, with the mean and std in ``pixels``.

    Raises:
        ConfigError: it contradicts the model, or says what is not supported.
    """
    if not raw:
        usual = FAMILIES[config.family].usual_preprocess(config.image_size)
        if pixels is None:
            return usual
        return dataclasses.replace(usual, mean=pixels[0], std=pixels[1])
    raw, stem = _completed(raw, processor)
    side, squash, final = _sides(raw, stem)
    if final != config.image_size:
        raise ConfigError(
            f"{_WHERE} makes images of {final} x {final}, the model takes {config.image_size}"
        )
    factor = raw.get("rescale_factor", 1 / 255) if raw.get("do_rescale", True) else 1.0
    if not isinstance(factor, (int, float)) or not 0.00391 < factor < 0.00393:
        raise ConfigError(f"{_WHERE}: pixels must be scaled by 1/255 before they are normalised")
    resample = raw["resample"]
    if type(resample) is not int or resample not in _RESAMPLE:
        raise ConfigError(
            f"{_WHERE}: resample must be {', '.join(f'{n} ({m})' for n, m in _RESAMPLE.items())}, "
            f"found {str(resample)[:60]!r}"
        )
    normalised = raw.get("do_normalize", True)
    fields = {
        "resize": side,
        "interpolation": _RESAMPLE[resample],
        "mean": raw["image_mean"] if normalised else (0.0, 0.0, 0.0),
        "std": raw["image_std"] if normalised else (1.0, 1.0, 1.0),
        "squash": squash,
    }
    return from_json(Preprocess, fields, where=_WHERE, error=ConfigError)


def side_made(raw: dict[str, Any], processor: str) -> int | None:
    """Returns the side of the images that ``preprocessor_config.json`` makes; None if it is empty.

    Raises:
        ConfigError: it says what is not supported.
    """
    return _sides(*_completed(raw, processor))[2] if raw else None


def _completed(raw: dict[str, Any], processor: str) -> tuple[dict[str, Any], str]:
    """Returns the settings with those of transformers' class, and the name of the class."""
    name = raw.get("image_processor_type") or raw.get("feature_extractor_type") or processor
    stem = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", str(name))
    if stem not in _PROCESSORS:
        raise ConfigError(
            f"{_WHERE}: image_processor_type {str(name)[:60]!r} is not supported: expected that of "
            f"{', '.join(_PROCESSORS)}"
        )
    return _PROCESSORS[stem] | raw, stem


def _sides(raw: dict[str, Any], stem: str) -> tuple[int, bool, int]:
    """Returns the resized side, whether both sides get it, and the side of what comes out."""
    for name, expected in (("do_resize", True), ("do_pad", False)):
        if bool(raw.get(name, expected)) is not expected:
            raise ConfigError(
                f"{_WHERE}: {name} must be {str(expected).lower()}, as all images "
                f"must be squares of one size; found {raw[name]!r:.60}"
            )
    size = raw["size"]
    side = _side(raw, "size")
    # Height and width set both sides, whatever the image's shape.
    squash = "height" in size if isinstance(size, dict) else stem not in _SHORTEST
    if raw.get("do_center_crop", False):
        return side, squash, _side(raw, "crop_size")
    if not squash:
        raise ConfigError(
            f"{_WHERE} makes images of several shapes: expected do_center_crop, or a size of "
            f"height and width, found size {size!r:.60}"
        )
    return side, squash, side


def _side(raw: dict[str, Any], name: str) -> int:
    size = raw[name]
    if isinstance(size, dict) and set(size) in ({"shortest_edge"}, {"height", "width"}):
        sides = list(size.values())
        size = sides[0] if sides[0] == sides[-1] else size
    if type(size) is not int:
        raise ConfigError(
            f"preprocessor_config.json: {name} must be one number, a shortest_edge, or height and "
            f"width alike; found {size!r}"
        )
    return size


def say_assumed(
    preprocessor: dict[str, Any], config: LGViTConfig, path: Path, note: Callable[[str], None]
) -> None:
    """Tells ``note`` the preprocessing of a folder that says none."""
    if not preprocessor:
        note(
            f"{path} has no preprocessor_config.json; assumed: "
            f"{config.preprocess.described(config.image_size)}"
        )
