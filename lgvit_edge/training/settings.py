"""The settings of a training, with default, help and bounds of each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from lgvit_edge.bundle.codec import to_json
from lgvit_edge.errors import UsageError
from lgvit_edge.training.schemes import ORDERS, SCHEMES

if TYPE_CHECKING:
    import torch

_AUTHORS = "default as in the LGViT paper's code"
# Bounds, in words and as a check.
_NOT_NEGATIVE = ("at least 0", lambda x: x >= 0)
_POSITIVE = ("above 0", lambda x: x > 0)


@dataclass(frozen=True)
class Setting:
    """Describes a field of ``TrainingConfig``, beside its type and default."""

    help: str  # what it does
    bounds: str = ""  # which numbers are allowed, in words; empty where all are
    fits: Callable[[Any], bool] = lambda value: True  # is a number allowed; each of a pair
    choices: Callable[[], Mapping[str, str]] | None = None  # the words allowed, what each does
    panel: str | None = None  # the group it is shown in
    speed_only: bool = False  # it decides how fast the same numbers are computed, not which

    @property
    def allowed(self) -> str:
        """The allowed values, in words."""
        return self.bounds if self.choices is None else f"one of {', '.join(self.choices())}"

    def faults(self, value: Any, default: Any) -> bool:
        """Returns whether ``value`` is not allowed or of another type than ``default``."""
        if self.choices is not None:
            return value not in self.choices()
        pair = isinstance(default, tuple)
        values, kind = (value, type(default[0])) if pair else ((value,), type(default))
        if not isinstance(values, tuple) or len(values) != (2 if pair else 1):
            return True
        kinds = (int, float) if kind is float else kind
        return not all(isinstance(v, kinds) and math.isfinite(v) and self.fits(v) for v in values)


def _setting(default: Any, help: str, *bounds: Any, **about: Any) -> Any:
    """Returns a dataclass field with its help and bounds."""
    return field(default=default, metadata={"setting": Setting(help, *bounds, **about)})


# Groups of settings, as the command's help shows them.
_optimiser = partial(_setting, panel="Optimiser")
_distillation = partial(_setting, panel="Distillation (equations of the LGViT paper)")
_speed = partial(_setting, panel="Images and speed")


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of both stages; pairs hold stage 1's value, then stage 2's."""

    order: str = _setting(
        "joint",
        "Stages to run: 1 trains the whole model, 2 the exits of a frozen backbone",
        choices=lambda: {order.name: order.help for order in ORDERS.values()},
    )
    epochs: tuple[int, int] = _setting(
        (50, 50),
        "Number of times that every training image is seen",
        "at least 1",
        lambda n: n >= 1,
    )
    lr: tuple[float, float] = _optimiser(
        (5e-5, 5e-5),
        f"Peak learning rate, {_AUTHORS}; for few images and epochs try 1e-4,4e-3",
        *_POSITIVE,
    )
    head_lr: float = _optimiser(
        0.0,
        "Stage 1: peak learning rate of exit heads, whose updates are scaled; 0 takes stage 2's",
        *_NOT_NEGATIVE,
    )
    layer_decay: float = _optimiser(
        1.0,
        "Stage 1: factor on the learning rate from each block to the one before it, such as 0.75",
        "in 0..1, above 0",
        lambda x: 0 < x <= 1,
    )
    batch_size: int = _optimiser(
        64,
        f"Images per step, over all processes together, {_AUTHORS}",
        "at least 2",  # BatchNorm cannot learn from a single value per channel
        lambda n: n >= 2,
    )
    warmup: float = _optimiser(
        0.05,
        "Share of the steps in which the learning rate rises; then it falls to 0",
        "in 0..1, below 1",
        lambda x: 0 <= x < 1,
    )
    weight_decay: float = _optimiser(
        0.05, "AdamW's weight decay; norms, biases and embeddings have none", *_NOT_NEGATIVE
    )
    clip: float = _optimiser(1.0, "Largest norm of the gradient; 0 clips nothing", *_NOT_NEGATIVE)
    scheme: str = _setting(
        "lgvit",
        "How the losses of all exits are combined",
        choices=lambda: {scheme.name: scheme.help for scheme in SCHEMES.values()},
    )
    gamma: float = _distillation(
        0.3,
        f"Share of the loss that imitates final classifier or teacher (KL in Eq. 14), {_AUTHORS}",
        "in 0..1",
        lambda x: 0 <= x <= 1,
    )
    temperature: float = _distillation(
        2.0, f"Temperature T of Eq. 14, which softens predictions, {_AUTHORS}", *_POSITIVE
    )
    alpha: float = _distillation(
        0.01,
        f"Weight of heterogeneous distillation, from the last block (Eq. 15), {_AUTHORS}",
        *_NOT_NEGATIVE,
    )
    beta: float = _distillation(
        0.01,
        f"Weight of homogeneous distillation, between exits (Eq. 15), {_AUTHORS}",
        *_NOT_NEGATIVE,
    )
    kl: str = _distillation(
        "image",
        "How the KL term of Eq. 14 is averaged",
        choices=lambda: {
            "image": "over images",
            "class": "over images and classes, as in the authors' code",
        },
    )
    prediction_exits: str = _distillation(
        "all",
        "Exits that Eq. 13 supervises",
        choices=lambda: {
            "all": "every exit, as in the authors' code",
            "paper": "the last local and the last global one; the others learn no classes",
        },
    )
    gram: str = _distillation(
        "mean",
        "How F^T F of Eq. 11 is summed over tokens, whose number differs between exits",
        choices=lambda: {"mean": "divided by their number", "sum": "as in the paper"},
    )
    views: int = _speed(
        0,
        "Stage 1: augmented copies of each image, taken in turn; 0 makes a new one every epoch. A "
        "teacher answers each copy once",
        *_NOT_NEGATIVE,
    )
    cache: bool = _speed(
        False, "Stage 2: run the frozen blocks once and hold their outputs in memory (float16)"
    )
    cache_views: int = _speed(
        0,
        "With a cache: augmented copies of each image; 0 caches images without augmentation",
        *_NOT_NEGATIVE,
    )
    min_crop: float = _speed(
        0.08,
        "Smallest share of an image that a random crop keeps",
        "in 0..1, above 0",
        lambda x: 0 < x <= 1,
    )
    flip: bool = _speed(True, "Mirror half of the training images, at random")
    precision: str = _speed(
        "fp32",
        "Number format of matrix products; weights, losses and optimiser stay in float32",
        choices=lambda: {"fp32": "float32", "bf16": "bfloat16, faster on recent hardware"},
    )
    seed: int = _setting(
        777, "Seed of all random choices", "in 0..2^63 - 1", lambda x: 0 <= x < 2**63
    )
    workers: int = _speed(
        2,
        "Processes that decode images; 0 decodes in the main process",
        *_NOT_NEGATIVE,
        speed_only=True,
    )
    device: str = _speed(
        "auto",
        "Device to train on",
        choices=lambda: {"auto": "a GPU if there is one", "cpu": "CPU", "cuda": "GPU"},
        speed_only=True,
    )

    def __post_init__(self) -> None:
        """Reports every fault at once."""
        faults = []
        for name, about, default in settings():
            value = getattr(self, name)
            if about.faults(value, default):
                words = "two numbers " if isinstance(default, tuple) else ""
                faults.append(f"{name} must be {words}{about.allowed}, found {value!r}")
        if faults:
            raise UsageError("; ".join(faults))

    def replace(self, **changes: Any) -> TrainingConfig:
        """Returns a copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)

    @property
    def stages(self) -> tuple[int, ...]:
        """The stages to run, in order."""
        return ORDERS[self.order].stages

    @property
    def imitation(self) -> dict[str, Any]:
        """The arguments of losses that imitate the final classifier."""
        return {"gamma": self.gamma, "temperature": self.temperature, "kl": self.kl}

    def autocast(self, device: torch.device) -> torch.autocast:
        """Returns the context in which networks, but not losses, are computed."""
        import torch

        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def identity(self) -> dict[str, Any]:
        """Returns the settings that decide the result, as plain JSON types."""
        values = to_json(self)
        return {name: values[name] for name, about, _ in settings() if not about.speed_only}


def settings() -> list[tuple[str, Setting, Any]]:
    """Returns name, description and default of every field of ``TrainingConfig``, in order."""
    fields = dataclasses.fields(TrainingConfig)
    return [(place.name, place.metadata["setting"], place.default) for place in fields]
