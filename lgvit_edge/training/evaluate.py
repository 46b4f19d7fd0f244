"""Accuracy at every exit."""

from __future__ import annotations

import torch
from rich.table import Table
from torch import Tensor

from lgvit_edge._terminal import table
from lgvit_edge.config import LGViTConfig
from lgvit_edge.errors import DataError
from lgvit_edge.model import LGViT
from lgvit_edge.training.batches import Batches
from lgvit_edge.training.data import Dataset


@torch.no_grad()
def evaluate(
    model: LGViT, dataset: Dataset, batch_size: int = 64, *, workers: int = 0
) -> list[float]:
    """Top-1 accuracy 0..1 of every exit, the final classifier last, on images as at inference.

    Images that cannot be read are left out.

    Returns:
        M + 1 numbers.

    Raises:
        DataError: not one image could be read.
    """
    device = next(model.parameters()).device
    batches = Batches(
        dataset, model.config.preprocess, batch_size=batch_size, workers=workers, device=device
    )
    training = model.training
    model.eval()
    correct: Tensor | int = 0
    seen = 0
    try:
        for batch in batches.ordered():
            predicted = model.exit_logits(batch.images).argmax(dim=-1)  # [B, M + 1]
            correct = correct + (predicted == batch.labels[:, None]).sum(dim=0)
            seen += len(batch.labels)
    finally:
        model.train(training)
    if not isinstance(correct, Tensor):
        raise DataError("expected images to evaluate on, found none that can be read")
    return [int(c) / seen for c in correct]


def accuracy_table(config: LGViTConfig, accuracies: list[float]) -> Table:
    """A row per exit, to print."""
    made = table("exit", "block", "head", numbers=("accuracy",))
    rows = [(str(e.block), e.head) for e in config.exits] + [(str(config.num_blocks), "final")]
    for number, ((block, head), accuracy) in enumerate(zip(rows, accuracies, strict=True), 1):
        made.add_row(str(number), block, head, f"{100 * accuracy:.2f} %")
    return made
