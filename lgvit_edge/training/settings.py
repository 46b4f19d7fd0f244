"""Everything that decides how a training goes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch

from lgvit_edge.bundle.codec import to_json
from lgvit_edge.errors import UsageError
from lgvit_edge.training.schemes import SCHEMES

PREDICTION_EXITS = ("all", "paper")
KL = ("image", "class")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("fp32", "bf16")
# What changes how fast the same numbers are computed, not which.
_SPEED_ONLY = ("workers", "device")


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of both stages; pairs hold stage 1's value, then stage 2's.

    The defaults of ``lr``, ``batch_size``, ``gamma``, ``temperature``, ``alpha``, ``beta`` and
    ``seed`` are the authors'.

    Attributes:
        epochs: passes over the training images.
        lr: peak learning rates.
        batch_size: images per step.
        warmup: share of each stage's steps in which the rate rises linearly; then a cosine to 0.
        weight_decay: AdamW's, on weights of two or more dimensions (no norm, bias or embedding).
        clip: largest norm of the gradient; 0 leaves it alone.
        scheme: how losses become one, of ``lgvit_edge.training.schemes.SCHEMES``.
        gamma: share of the distillation term in Eq. 14.
        temperature: T of Eq. 14.
        alpha: weight of the heterogeneous loss in Eq. 15.
        beta: weight of the homogeneous loss in Eq. 15.
        kl: ``image`` averages the KL term of Eq. 14 over images; ``class`` divides by the number of
            classes as well, as the authors' code does.
        prediction_exits: ``all`` applies Eq. 14 at every exit, as the authors' code does;
            ``paper`` only at exits M/2 and M, as Eq. 13 is written, which leaves the classifiers
            of all other exits untrained.
        gram: ``mean`` divides F^T F of Eq. 11 by the number of tokens, which differs between
            exits; ``sum`` takes it as it is written.
        cache: stage 2 computes the blocks' outputs once and keeps them in memory (float16).
        cache_views: augmented copies of every image in the cache; 0 caches the images as they are.
        min_crop: smallest share of an image that a random crop keeps (image folders).
        flip: mirror every other training image (image folders).
        precision: ``bf16`` computes products of matrices in bfloat16 (mixed precision: weights,
            losses and the optimizer stay in float32), faster where the processor has it.
        seed: of everything random.
        workers: processes that decode images; 0 decodes in this one.
        device: ``cpu``, ``cuda``, or ``auto`` for cuda where there is one.
    """

    epochs: tuple[int, int] = (50, 50)
    lr: tuple[float, float] = (5e-5, 5e-5)
    batch_size: int = 64
    warmup: float = 0.05
    weight_decay: float = 0.05
    clip: float = 1.0
    scheme: str = "lgvit"
    gamma: float = 0.3
    temperature: float = 2.0
    alpha: float = 0.01
    beta: float = 0.01
    kl: str = "image"
    prediction_exits: str = "all"
    gram: str = "mean"
    cache: bool = False
    cache_views: int = 0
    min_crop: float = 0.08
    flip: bool = True
    precision: str = "fp32"
    seed: int = 777
    workers: int = 2
    device: str = "auto"

    def __post_init__(self) -> None:
        """Report every fault at once."""
        checks = [
            (_pair(self.epochs, 1), "epochs must be two whole numbers >= 1", "epochs"),
            (_pair(self.lr) and min(self.lr) > 0, "lr must be two numbers > 0", "lr"),
            # BatchNorm cannot learn from a single value per channel.
            (self.batch_size >= 2, "batch_size must be at least 2", "batch_size"),
            (0 <= self.warmup < 1, "warmup must lie in 0..1", "warmup"),
            (_finite(self.weight_decay), "weight_decay must be >= 0", "weight_decay"),
            (_finite(self.clip), "clip must be >= 0", "clip"),
            (0 <= self.gamma <= 1, "gamma must lie in 0..1", "gamma"),
            (
                _finite(self.temperature) and self.temperature > 0,
                "temperature must be > 0",
                "temperature",
            ),
            (_finite(self.alpha), "alpha must be >= 0", "alpha"),
            (_finite(self.beta), "beta must be >= 0", "beta"),
            (
                self.scheme in SCHEMES,
                f"scheme must be one of {', '.join(SCHEMES)}",
                "scheme",
            ),
            (self.kl in KL, f"kl must be one of {', '.join(KL)}", "kl"),
            (
                self.gram in ("mean", "sum"),
                "gram must be one of mean, sum",
                "gram",
            ),
            (
                self.prediction_exits in PREDICTION_EXITS,
                f"prediction_exits must be one of {', '.join(PREDICTION_EXITS)}",
                "prediction_exits",
            ),
            (self.cache_views >= 0, "cache_views must be >= 0", "cache_views"),
            (0 < self.min_crop <= 1, "min_crop must lie in 0..1, above 0", "min_crop"),
            (
                self.precision in PRECISIONS,
                f"precision must be one of {', '.join(PRECISIONS)}",
                "precision",
            ),
            (self.seed >= 0, "seed must be >= 0", "seed"),
            (self.workers >= 0, "workers must be >= 0", "workers"),
            (self.device in DEVICES, f"device must be one of {', '.join(DEVICES)}", "device"),
        ]
        faults = [
            f"{fault}, found {getattr(self, name)!r}" for good, fault, name in checks if not good
        ]
        if faults:
            raise UsageError("; ".join(faults))

    def replace(self, **changes: Any) -> TrainingConfig:
        """A copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)

    @property
    def imitation(self) -> dict[str, Any]:
        """What losses need to know of distilled predictions."""
        return {"gamma": self.gamma, "temperature": self.temperature, "kl": self.kl}

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context in which networks, but not losses, are computed."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def identity(self) -> dict[str, Any]:
        """The settings that decide the result, as plain JSON types."""
        return {k: v for k, v in to_json(self).items() if k not in _SPEED_ONLY}


def _finite(value: float) -> bool:
    return math.isfinite(value) and value >= 0


def _pair(values: tuple[float, float], least: float = 0) -> bool:
    return len(values) == 2 and all(math.isfinite(v) and v >= least for v in values)
