"""What a model's configuration and a bundle's manifest say of a network's input."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from lgvit_edge.errors import ConfigError

INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos", "box", "hamming")


@dataclass(frozen=True)
class Preprocess:
    """Settings that turn an image into the network's input: resize, centre crop, normalise."""

    resize: int = 256  # short side after resizing, in pixels
    interpolation: str = "bilinear"  # one of ``INTERPOLATIONS``
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # per RGB channel, of values in 0..1
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)  # per RGB channel, of values in 0..1
    # Whether both sides become ``resize``, whatever the image's shape, as in most of Hugging Face's
    # processors
    squash: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that no image could go through."""
        if not 1 <= self.resize <= 65_536:
            raise ConfigError(f"resize must be 1..65536, found {self.resize}")
        if self.interpolation not in INTERPOLATIONS:
            raise ConfigError(
                f"interpolation must be one of {', '.join(INTERPOLATIONS)}, "
                f"found {self.interpolation!r}"
            )
        if not all(math.isfinite(m) for m in self.mean):
            raise ConfigError(f"mean must be finite, found {self.mean}")
        if not all(0 < s < math.inf for s in self.std):
            raise ConfigError(f"std must be positive, found {self.std}")

    def described(self, size: int) -> str:
        """Return the settings in words, for crops of ``size``."""
        side = "both sides" if self.squash else "short side"
        mean, std = (", ".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        return (
            f"{side} to {self.resize} ({self.interpolation}), centre crop of {size}, mean {mean}, "
            f"std {std}"
        )

    def changed(self, size: int, *, crop_pct: float | None = None, **fields: Any) -> Preprocess:
        """Return other settings for crops of ``size``; those that are None stay.

        ``crop_pct`` is the share of the resized image's side that the crop keeps, as in timm.
        """
        if crop_pct is not None:
            if not 0.1 <= crop_pct <= 1:
                raise ConfigError(f"crop_pct must be 0.1..1, found {crop_pct}")
            fields["resize"] = int(size / crop_pct)
        typed = {name: value for name, value in fields.items() if value is not None}
        return dataclasses.replace(self, **typed)


class View(NamedTuple):
    """Says how one pass sees an image: its preprocessing, its side in pixels and its dtype.

    ``uint8`` is ``[B, size, size, 3]`` RGB, ``float32`` is ``[B, 3, size, size]``, normalised.
    """

    preprocess: Preprocess
    size: int
    dtype: str


def usual_resize(size: int) -> int:
    """Return the usual short side for a crop of ``size``, such as 256 for 224."""
    return size * 256 // 224
