"""AdamW as ViTs are trained with it: warm-up, cosine, no decay on norms, biases, embeddings."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

_EMBEDDINGS = ("embedding.prefix", "embedding.position", "attention.table")


def learning_rate(step: int, steps: int, *, peak: float, warmup: float) -> float:
    """Rate of a 0-based step: linear up to ``peak``, then a cosine down to 0.

    Args:
        step: 0..steps - 1.
        steps: in the whole stage.
        peak: the highest rate.
        warmup: share of the steps that rise.
    """
    rising = int(steps * warmup)
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))


def adamw(
    parameters: Iterable[tuple[str, nn.Parameter]], *, weight_decay: float
) -> torch.optim.AdamW:
    """The optimizer; its rate is set before every step.

    Args:
        parameters: names and parameters to train.
        weight_decay: on weights of two or more dimensions that are no embedding.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in parameters:
        flat = parameter.ndim < 2 or name.endswith(_EMBEDDINGS)
        (plain if flat else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0)
