"""Accuracy at every exit, and what it is worth."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from rich.table import Table

from lgvit_edge._support.terminal import table
from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.errors import DataError
from lgvit_edge.model import LGViT, model_costs
from lgvit_edge.policies.curves import Labels, Logits, summary
from lgvit_edge.training.data.batches import Batches
from lgvit_edge.training.data.datasets import Dataset
from lgvit_edge.training.team import Team


@torch.no_grad()
def all_logits(
    model: LGViT, dataset: Dataset, batch_size: int = 64, *, workers: int = 0
) -> tuple[Logits, Labels]:
    """Logits of every exit, the final classifier last, on images as at inference.

    Images that cannot be read are left out.

    Returns:
        ``[n, M + 1, C] float32`` and ``[n] int64``.

    Raises:
        DataError: not one image could be read.
    """
    device = next(model.parameters()).device
    batches = Batches(
        dataset, model.config.preprocess, batch_size=batch_size, workers=workers, team=Team(device)
    )
    training = model.training
    model.eval()
    logits, labels = [], []
    try:
        for batch in batches.ordered():
            logits.append(model.exit_logits(batch.images).cpu().numpy())
            labels.append(batch.labels.cpu().numpy())
    finally:
        model.train(training)
    if not labels:
        raise DataError("expected images to evaluate on, found none that can be read")
    return np.concatenate(logits), np.concatenate(labels)


def evaluate(
    model: LGViT, dataset: Dataset, batch_size: int = 64, *, workers: int = 0
) -> list[float]:
    """Top-1 accuracy 0..1 of every exit, the final classifier last; as ``all_logits``.

    Returns:
        M + 1 numbers.
    """
    logits, labels = all_logits(model, dataset, batch_size, workers=workers)
    return [float(a) for a in (logits.argmax(axis=-1) == labels[:, None]).mean(axis=0)]


def worth(model: LGViT, logits: Logits, labels: Labels) -> dict[str, Any]:
    """``curves.summary`` of a model's logits."""
    config = model.config
    costs = model_costs(model)
    blocks = [*(exit.block for exit in config.exits), config.num_blocks]
    return summary(logits, labels, costs.segments, costs.baseline, blocks)


def accuracy_table(config: LGViTConfig, accuracies: list[float]) -> Table:
    """A row per exit, to print."""
    made = table("exit", "block", "head", numbers=("accuracy",))
    rows = [(str(e.block), e.head) for e in config.exits] + [(str(config.num_blocks), "final")]
    for number, ((block, head), accuracy) in enumerate(zip(rows, accuracies, strict=True), 1):
        made.add_row(str(number), block, head, f"{100 * accuracy:.2f} %")
    return made
