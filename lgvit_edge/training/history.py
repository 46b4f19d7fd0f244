"""Records a training epoch by epoch: a table beside the checkpoint, and a picture of it."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lgvit_edge._support.files import replacing
from lgvit_edge._support.optional import require
from lgvit_edge.errors import TrainingError

COLUMNS = ("stage", "epoch", "step", "lr", "loss", "accuracy", "seconds")
Row = dict[str, float]  # of COLUMNS; loss and accuracy are means over the epoch's steps
_NEWEST = 0.05  # weight of the newest step in the averages on the progress bar


def log_path(out: Path) -> Path:
    """Returns the path of the log: ``model.log.csv`` beside ``model.pt``."""
    return out.with_suffix(".log.csv")


def write_log(rows: Sequence[Row], path: Path) -> None:
    """Writes a row per epoch as CSV, whole or not at all.

    Raises:
        TrainingError: the file cannot be written.
    """
    try:
        with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows({name: f"{row[name]:.6g}" for name in COLUMNS} for row in rows)
    except OSError as error:
        raise TrainingError(f"cannot write {path}: {error.strerror}") from None


def draw_log(rows: Sequence[Row], path: Path) -> None:
    """Draws loss and training accuracy by epoch, a panel per stage.

    Raises:
        MissingDependency: matplotlib is not installed.
        OSError: the file cannot be written.
    """
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
