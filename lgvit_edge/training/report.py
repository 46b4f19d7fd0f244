"""Writes what a training leaves beside its checkpoint: evaluation, learning curve, pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from lgvit_edge._support.files import replacing, write_json
from lgvit_edge._support.terminal import progress_bar
from lgvit_edge.errors import TrainingError
from lgvit_edge.model import LGViT
from lgvit_edge.policies.evaluate import summary
from lgvit_edge.policies.picture import by_label, draw
from lgvit_edge.training.data.datasets import Dataset
from lgvit_edge.training.evaluate import accuracy_table, all_logits, exit_costs
from lgvit_edge.training.history import Row, draw_log


def measure(
    model: LGViT, dataset: Dataset, out: Path, console: Console, *, batch_size: int, workers: int
) -> None:
    """Prints the accuracy of every exit and writes ``<out>.eval.json`` and ``.eval.png``.

    Raises:
        DataError: not one image could be read.
        TrainingError: a file cannot be written.
    """
    with progress_bar("measuring accuracy", to=console) as progress:
        images = all_logits(model, dataset, batch_size, workers=workers, progress=progress)
    evaluation = summary(images, exit_costs(model))
    console.print(accuracy_table(model.config, evaluation["accuracy"]))
    oracle = evaluation["oracle"]
    console.print(
        f"an oracle that leaves at the first correct exit: {100 * oracle['accuracy']:.2f} % with "
        f"{oracle['layers_speedup']:.2f}x fewer blocks",
        soft_wrap=True,
    )
    target = out.with_suffix(".eval.json")
    try:
        write_json(target, evaluation)
    except OSError as error:
        raise TrainingError(f"cannot write {target}: {error.strerror}") from None
    title = f"{model.config.family}, {model.config.num_exits} exits, {len(images)} images"
    lines, base = by_label(evaluation["policies"]), images.baseline_accuracy
    _draw(
        "accuracy against speed-up",
        lambda path: draw(lines, path, baseline=base, title=title),
        target,
        console,
    )


def picture_of(history: Sequence[Row], log: Path, console: Console) -> None:
    """Draws the learning curve beside its table, or prints why it cannot be drawn."""
    _draw("learning curve", lambda path: draw_log(history, path), log, console)


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
    console.print(message, soft_wrap=True, markup=False)
