"""Measures the accuracy of every exit on a dataset."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import numpy as np
import torch
from rich.table import Table

from lgvit_edge._support.terminal import table
from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.errors import DataError
from lgvit_edge.model import LGViT, model_costs
from lgvit_edge.policies.evaluate import ExitCosts, Images
from lgvit_edge.training.data.batches import Batches
from lgvit_edge.training.data.datasets import Dataset
from lgvit_edge.training.team import Team


@torch.no_grad()
def all_logits(
    model: LGViT,
    dataset: Dataset,
    batch_size: int = 64,
    *,
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Images:
    """Returns the logits of every exit on a dataset, the final classifier's last.

    Images are prepared as at inference; those that cannot be read are left out. ``progress`` is
    called with images done and images in all.

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
        for done, batch in enumerate(batches.ordered()):
            progress(done * batch_size, len(dataset))
            logits.append(model.exit_logits(batch.images).cpu().numpy())
            labels.append(batch.labels.cpu().numpy())
    finally:
        model.train(training)
    if not labels:
        raise DataError("expected images to evaluate on, found none that can be read")
    return Images(np.concatenate(logits), np.concatenate(labels))


def evaluate(
    model: LGViT, dataset: Dataset, batch_size: int = 64, *, workers: int = 0
) -> list[float]:
    """Returns the top-1 accuracy 0..1 of every exit, the final classifier last; see ``all_logits``.

    Returns:
        M + 1 numbers.
    """
    return all_logits(model, dataset, batch_size, workers=workers).accuracies


def exit_costs(model: LGViT) -> ExitCosts:
    """Returns the cost of an image by the exit it takes; nothing is timed."""
    config = model.config
    costs = model_costs(model)
    blocks = (*(exit.block for exit in config.exits), config.num_blocks)
    return ExitCosts(blocks, tuple(accumulate(costs.segments)), costs.baseline)


def accuracy_table(config: LGViTConfig, accuracies: list[float]) -> Table:
    """Returns a table to print, with a row per exit."""
    output = table("exit", "block", "head", numbers=("accuracy",))
    rows = [(str(e.block), e.head) for e in config.exits] + [(str(config.num_blocks), "final")]
    for number, ((block, head), accuracy) in enumerate(zip(rows, accuracies, strict=True), 1):
        output.add_row(str(number), block, head, f"{100 * accuracy:.2f} %")
    return output
