"""The demo's data and recipe: scikit-learn's handwritten digits, which need no download."""

from __future__ import annotations

import numpy as np

from lgvit_edge._optional import require
from lgvit_edge.config import LGViTConfig, plan_exits
from lgvit_edge.image_spec import Preprocess
from lgvit_edge.training.data import ArrayDataset
from lgvit_edge.training.settings import TrainingConfig

_SIZE, _PATCH = 32, 4
_SHARE = 0.8


def digits_config() -> LGViTConfig:
    """12 blocks over 64 tokens, four exits."""
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


def digits_sets() -> tuple[ArrayDataset, ArrayDataset]:
    """1,437 digits to train on and 360 to measure on, always the same.

    Raises:
        MissingDependency: scikit-learn is not installed.
    """
    from PIL import Image

    digits = require("sklearn.datasets", extra="train").load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8], 0..16 before
    large = [
        np.asarray(Image.fromarray(g).resize((_SIZE, _SIZE), Image.Resampling.BILINEAR))
        for g in grey
    ]
    images = np.repeat(np.stack(large)[..., None], 3, axis=3)
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    cut = int(_SHARE * len(order))
    names = [str(digit) for digit in range(10)]
    return (
        ArrayDataset(images[order[:cut]], labels[order[:cut]], classes=names, shift=3),
        ArrayDataset(images[order[cut:]], labels[order[cut:]], classes=names),
    )


def digits_training() -> TrainingConfig:
    """Settings that reach their accuracy in under two minutes on two cores."""
    return TrainingConfig(
        epochs=(20, 10),
        lr=(1e-3, 2e-3),
        batch_size=64,
        warmup=0.1,
        weight_decay=0.05,
        cache=True,
        cache_views=2,
        workers=0,
        device="cpu",
    )
