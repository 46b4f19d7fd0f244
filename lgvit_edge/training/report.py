"""Measures a training: a table of its epochs, the accuracy of every exit, pictures of both."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from lgvit_edge._support.optional import require
from lgvit_edge._support.outputs import replacing, write_json
from lgvit_edge._support.terminal import progress_bar, say, table
from lgvit_edge.errors import DataError, TrainingError
from lgvit_edge.model import LGViT, model_costs
from lgvit_edge.policies.evaluate import ExitCosts, Images, summary
from lgvit_edge.policies.picture import by_label, draw
from lgvit_edge.training.data.batches import Batches
from lgvit_edge.training.data.datasets import Dataset
from lgvit_edge.training.settings import TrainingConfig
from lgvit_edge.training.team import Team

COLUMNS = ("stage", "epoch", "step", "lr", "loss", "accuracy", "seconds")
Row = dict[str, float]  # of COLUMNS; loss and accuracy are means over the epoch's steps
_NEWEST = 0.05  # weight of the newest step in the averages on the progress bar


def log_path(out: Path) -> Path:
    """Returns the path of the log: ``model.log.csv`` beside ``model.pt``."""
    return out.with_suffix(".log.csv")


def write_log(rows: Sequence[Row], path: Path) -> None:
    """Writes a row per epoch as CSV, whole or not at all; a failure is a ``TrainingError``."""
    try:
        with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows({name: f"{row[name]:.6g}" for name in COLUMNS} for row in rows)
    except OSError as error:
        raise TrainingError(f"cannot write {path}: {error.strerror}") from None


def draw_log(rows: Sequence[Row], path: Path) -> None:
    """Draws loss and training accuracy by epoch, a panel per stage; needs matplotlib."""
    matplotlib: Any = require("matplotlib.figure", extra="train")
    stages = sorted({int(row["stage"]) for row in rows})
    figure = matplotlib.Figure(figsize=(4.5 * len(stages), 3.6), layout="constrained")
    for axes, stage in zip(figure.subplots(1, len(stages), squeeze=False)[0], stages, strict=True):
        own = [row for row in rows if row["stage"] == stage]
        epochs = [row["epoch"] for row in own]
        axes.plot(epochs, [row["loss"] for row in own], color="C0", marker=".")
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss", color="C0")
        axes.set_title(f"stage {stage}", fontsize=10)
        right = axes.twinx()
        right.plot(epochs, [100 * row["accuracy"] for row in own], color="C1", marker=".")
        right.set_ylabel("training accuracy (%)", color="C1")
        right.set_ylim(0, 100)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=120, format="png")


class Mean:
    """Weighted mean of the values added so far."""

    def __init__(self) -> None:
        self.sum = self.weight = 0.0

    def add(self, value: float, weight: float = 1.0) -> None:
        """Adds a value."""
        self.sum += value * weight
        self.weight += weight

    @property
    def value(self) -> float:
        """The mean; NaN where nothing was added."""
        return self.sum / self.weight if self.weight else math.nan


class Smoothed:
    """Moving averages of loss and accuracy over the last steps."""

    def __init__(self) -> None:
        self.loss = self.accuracy = math.nan

    def add(self, loss: float, accuracy: float) -> None:
        """Adds a step."""
        if math.isnan(self.loss):
            self.loss, self.accuracy = loss, accuracy
        self.loss += _NEWEST * (loss - self.loss)
        self.accuracy += _NEWEST * (accuracy - self.accuracy)

    def __str__(self) -> str:
        return f"loss {self.loss:.3f}  accuracy {100 * self.accuracy:.1f} %"


@torch.no_grad()
def all_logits(
    model: LGViT,
    dataset: Dataset,
    batch_size: int = 64,
    *,
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    note: Callable[[str], None] = lambda text: None,
) -> Images:
    """Returns the logits of every exit on a dataset, the final classifier's last.

    Images are prepared as at inference; those that cannot be read are left out, which ``note`` is
    told. ``progress`` is called with images done and images in all. Not one readable image is a
    ``DataError``.
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
    if faults := list(batches.unreadable.values()):
        note(f"{len(faults)} of {len(dataset)} images cannot be read, such as: {faults[0]}")
    return Images(np.concatenate(logits), np.concatenate(labels))


def exit_costs(model: LGViT) -> ExitCosts:
    """Returns the cost of an image by the exit it takes; nothing is timed."""
    costs = model_costs(model)
    blocks = (*(exit.block for exit in model.config.exits), model.config.num_blocks)
    return ExitCosts(blocks, blocks[-1], tuple(accumulate(costs.segments)), costs.baseline)


def measure(
    model: LGViT, dataset: Dataset, out: Path, console: Console, config: TrainingConfig
) -> Images:
    """Prints the accuracy of every exit and writes ``<out>.eval.json`` and ``.eval.png``.

    Returns the logits of every exit, as ``all_logits`` does.

    Raises:
        DataError: not one image could be read.
        TrainingError: a file cannot be written.
    """
    with progress_bar("measuring accuracy", to=console) as progress:
        images = all_logits(
            model,
            dataset,
            config.batch_size,
            workers=config.workers,
            progress=progress,
            note=partial(say, to=console),
        )
    evaluation = summary(images, exit_costs(model))
    output, exits = table("exit", "block", "head", numbers=("accuracy",)), model.config.exits
    rows = [*((exit.block, exit.head) for exit in exits), (model.config.num_blocks, "final")]
    for number, (row, share) in enumerate(zip(rows, evaluation["accuracy"], strict=True), 1):
        output.add_row(f"{number}", f"{row[0]}", row[1], f"{100 * share:.2f} %")
    console.print(output)
    oracle = evaluation["oracle"]
    say(
        f"an oracle that leaves at the first correct exit: {100 * oracle['accuracy']:.2f} % with "
        f"{oracle['layers_speedup']:.2f}x fewer blocks",
        console,
    )
    target = out.with_suffix(".eval.json")
    try:
        write_json(target, evaluation)
    except OSError as error:
        raise TrainingError(f"cannot write {target}: {error.strerror}") from None
    title = f"{model.config.family}, {model.config.num_exits} exits, {len(images)} images"
    lines, base = by_label(evaluation["policies"]), images.baseline_accuracy
    picture = partial(draw, lines, baseline=base, title=title)
    _draw("accuracy against speed-up", picture, target, console)
    return images


def picture_of(history: Sequence[Row], log: Path, console: Console) -> None:
    """Draws the learning curve beside its table, or prints why it cannot be drawn."""
    _draw("learning curve", partial(draw_log, history), log, console)


def _draw(what: str, draw: Callable[[Path], None], table: Path, console: Console) -> None:
    """Draws beside the file that holds the figures; a failure is printed and does not stop."""
    picture = table.with_suffix(".png")
    try:
        with replacing(picture) as partial:
            draw(partial)
    except Exception as error:  # a full disk, no matplotlib, or one that is broken in any way
        message = f"{what}: {table}; no picture: {error}"
    else:
        message = f"{what}: {table}, {picture}"
    say(message, console)
