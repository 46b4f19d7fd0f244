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

Pixels = tuple[tuple[float, float, float], tuple[float, float, float]]  # mean and std
HALF: Pixels = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET: Pixels = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP: Pixels = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
_RESAMPLE = dict(enumerate(("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")))
_WHERE = "preprocessor_config.json"


@dataclasses.dataclass(frozen=True)
class _Processor:
    """What one of transformers' classes assumes where the file is silent."""

    resample: int
    pixels: Pixels
    shortest: bool = False  # whether a size of one number is the shorter side's, not that of both


_PROCESSORS = {
    "ViT": _Processor(2, HALF),
    "DeiT": _Processor(3, HALF),
    "Beit": _Processor(3, HALF),
    "Siglip": _Processor(3, HALF, shortest=True),
    "CLIP": _Processor(3, CLIP, shortest=True),
    "Bit": _Processor(3, CLIP, shortest=True),
    "DINOv3ViT": _Processor(2, IMAGENET),
}


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
    kind = _kind(raw, processor)
    side, squash, final = _sides(raw, kind)
    if final not in (None, config.image_size):
        raise ConfigError(
            f"{_WHERE} makes images of {final} x {final}, the model takes {config.image_size}"
        )
    factor = raw.get("rescale_factor", 1 / 255) if raw.get("do_rescale", True) else 1.0
    if not isinstance(factor, (int, float)) or not 0.00391 < factor < 0.00393:
        raise ConfigError(f"{_WHERE}: pixels must be scaled by 1/255 before they are normalised")
    resample = raw.get("resample", kind.resample)
    if type(resample) is not int or resample not in _RESAMPLE:
        raise ConfigError(
            f"{_WHERE}: resample must be {', '.join(f'{n} ({m})' for n, m in _RESAMPLE.items())}, "
            f"found {str(resample)[:60]!r}"
        )
    mean, std = kind.pixels
    normalised = raw.get("do_normalize", True)
    fields = {
        "resize": side or FAMILIES[config.family].usual_preprocess(config.image_size).resize,
        "interpolation": _RESAMPLE[resample],
        "mean": raw.get("image_mean", mean) if normalised else (0.0, 0.0, 0.0),
        "std": raw.get("image_std", std) if normalised else (1.0, 1.0, 1.0),
        "squash": squash,
    }
    return from_json(Preprocess, fields, where=_WHERE, error=ConfigError)


def side_made(raw: dict[str, Any], processor: str) -> int | None:
    """Returns the side of the images that ``preprocessor_config.json`` makes; None if it is open.

    Raises:
        ConfigError: a size is not understood.
    """
    return _sides(raw, _kind(raw, processor))[2]


def _kind(raw: dict[str, Any], processor: str) -> _Processor:
    name = raw.get("image_processor_type") or raw.get("feature_extractor_type") or processor
    stem = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", str(name))
    if stem not in _PROCESSORS:
        raise ConfigError(
            f"{_WHERE}: image_processor_type {str(name)[:60]!r} is not supported: expected that of "
            f"{', '.join(_PROCESSORS)}"
        )
    return _PROCESSORS[stem]


def _sides(raw: dict[str, Any], kind: _Processor) -> tuple[int | None, bool, int | None]:
    """Returns the resized side, whether both sides get it, and the side of what comes out."""
    crop = _side(raw, "crop_size") if raw.get("do_center_crop", "crop_size" in raw) else None
    side, squash = None, False
    if raw.get("do_resize", True) and "size" in raw:
        # Height and width set both sides, whatever the image's shape.
        number = not isinstance(raw["size"], dict)
        squash = not kind.shortest if number else "shortest_edge" not in raw["size"]
        side = _side(raw, "size")
    return side, squash, crop or (side if squash else None)


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


def say_assumed(
    preprocessor: dict[str, Any], config: LGViTConfig, path: Path, note: Callable[[str], None]
) -> None:
    """Tells ``note`` the preprocessing of a folder that says none."""
    if not preprocessor:
        note(
            f"{path} has no preprocessor_config.json; assumed: "
            f"{config.preprocess.described(config.image_size)}"
        )
