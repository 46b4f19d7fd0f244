"""What tests of several folders take alike: small configurations, a point, frames, photos."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.bundle.points import OperatingPoint
from lgvit_edge.images.spec import Preprocess
from lgvit_edge.policies import Confidence, Policy

Frame = NDArray[np.uint8]


def vit(**changes: Any) -> LGViTConfig:
    """Five blocks of width 16 on 4 x 4 tokens, three classes, no exits; images are not cropped."""
    sizes = dict(family="vit", image_size=32, patch_size=8, hidden_size=16, num_blocks=5)
    sizes |= dict(num_heads=2, intermediate_size=32, num_classes=3) | changes
    sizes.setdefault("preprocess", Preprocess(resize=sizes["image_size"]))
    return LGViTConfig(**sizes)


def swin(**changes: Any) -> LGViTConfig:
    """Two stages of two blocks, windows of 4 on 16 x 16 tokens, five classes, no exits."""
    sizes = dict(
        family="swin", patch_size=2, num_blocks=4, num_classes=5, prefix_tokens=0, pooling="mean"
    )
    return vit(**sizes | dict(depths=(2, 2), stage_heads=(2, 4), window_size=4) | changes)


def point(policy: Policy | None = None, **changes: Any) -> OperatingPoint:
    """For three exits and the final classifier."""
    figures = dict(accuracy=0.9, baseline_accuracy=0.9, macs=1e6, macs_speedup=1.5)
    figures |= dict(latency_ms=5.0, baseline_latency_ms=9.0, shares=(0.25,) * 4, images=100)
    figures |= dict(data_sha256="0" * 64, device="tests", goal="tests", guarantee=None)
    return OperatingPoint((policy or Confidence(0.5)).to_json(), **figures | changes)


def frames(count: int, seed: int = 0) -> list[Frame]:
    """Noise, each image of another height."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (40 + i, 50, 3), np.uint8) for i in range(count)]


def write_photos(root: Path, classes: Iterable[str], count: int) -> Path:
    """A folder for each class with ``count`` images of noise, ``00.png`` and so on."""
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            image = Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8))
            image.save(root / name / f"{i:02}.png")
    return root


def stripes(count: int) -> tuple[Frame, NDArray[np.int64]]:
    """Images of three classes that differ in where the light is, and their labels."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 3
    images = rng.integers(0, 60, (count, 32, 32, 3), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[8 * label : 8 * label + 10] += 150
    return images, labels


def write_stripes(root: Path) -> Path:
    """Folders ``class0`` to ``class2`` with four images each."""
    for i, (image, label) in enumerate(zip(*stripes(12), strict=True)):
        folder = root / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    return root
