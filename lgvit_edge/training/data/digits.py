"""The demo's data and recipe: scikit-learn's handwritten digits, which need no download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from lgvit_edge._support.optional import require
from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.architecture.placement import plan_exits
from lgvit_edge.images.spec import Preprocess
from lgvit_edge.model import LGViT
from lgvit_edge.model.backbones import vit
from lgvit_edge.training.data.datasets import ArrayDataset
from lgvit_edge.training.settings import TrainingConfig

_SIZE, _PATCH = 32, 4


def digits_config() -> LGViTConfig:
    """Returns the demo's configuration: 12 blocks over 64 tokens, four exits."""
    plain = LGViTConfig(
        family="vit",
        image_size=_SIZE,
        patch_size=_PATCH,
        hidden_size=64,
        num_blocks=12,
        num_heads=4,
        intermediate_size=128,
        num_classes=10,
        labels=tuple(str(digit) for digit in range(10)),
        preprocess=Preprocess(resize=_SIZE),
    )
    return plain.replace(exits=plan_exits("uniform:4", [1] * plain.num_blocks))


def digits_model(seed: int = 777) -> LGViT:
    """Returns an untrained LGViT of ``digits_config``.

    The usual 0.02 suits widths of 192 and more and is far too small for 64: here weights start
    with variance 1 / inputs, which takes a third of the epochs, and positions with 0.5.
    """
    model = LGViT(digits_config())
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            scale = module.weight[0].numel() ** -0.5
            nn.init.trunc_normal_(module.weight, std=scale, generator=generator)
    embedding = model.backbone.embedding
    assert isinstance(embedding, vit.Embedding)
    nn.init.trunc_normal_(embedding.position, std=0.5, generator=generator)
    nn.init.trunc_normal_(embedding.prefix, std=0.02, generator=generator)
    return model


def digits_sets() -> tuple[ArrayDataset, ArrayDataset]:
    """Returns 1,437 digits to train on and 360 to measure on, always the same.

    Raises:
        MissingDependency: scikit-learn is not installed.
    """
    from PIL import Image

    digits = require("sklearn.datasets", extra="train").load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8], 0..16 before
    side, bilinear = (_SIZE, _SIZE), Image.Resampling.BILINEAR
    large = np.stack([np.asarray(Image.fromarray(g).resize(side, bilinear)) for g in grey])
    images = np.repeat(large[..., None], 3, axis=3)
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    cut = int(0.8 * len(order))
    return (
        ArrayDataset(images[order[:cut]], labels[order[:cut]], shift=1),
        ArrayDataset(images[order[cut:]], labels[order[cut:]]),
    )


def write_images(images: ArrayDataset, folder: Path) -> None:
    """Writes every image as a PNG file, in a sub-folder per class."""
    from PIL import Image

    for number, (image, label) in enumerate(zip(images.images, images.labels, strict=True)):
        target = folder / str(int(label))
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(image)).save(target / f"{number:04d}.png")


def digits_training() -> TrainingConfig:
    """Returns the demo's settings, which train in under two minutes on two cores."""
    return TrainingConfig(
        epochs=(12, 8),
        lr=(2e-3, 2e-3),
        batch_size=32,
        warmup=0.1,
        weight_decay=0.05,
        cache=True,
        cache_views=2,
        workers=0,
        device="cpu",
    )
