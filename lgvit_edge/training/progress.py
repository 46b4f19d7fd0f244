"""What a training shows while it runs."""

from __future__ import annotations

import math

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_SHOWN = 0.05  # weight of the newest step in the smoothed loss and accuracy


class Smoothed:
    """Loss and accuracy of the last steps."""

    def __init__(self) -> None:
        self.loss = self.accuracy = math.nan

    def add(self, loss: float, accuracy: float) -> None:
        """One more step."""
        if math.isnan(self.loss):
            self.loss, self.accuracy = loss, accuracy
        self.loss += _SHOWN * (loss - self.loss)
        self.accuracy += _SHOWN * (accuracy - self.accuracy)

    def __str__(self) -> str:
        return f"loss {self.loss:.3f}  accuracy {100 * self.accuracy:.1f} %"


def bar(console: Console) -> Bar:
    """A bar whose tasks have a field ``shown``."""
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[shown]}"),
        TimeRemainingColumn(),
        console=console,
    )
