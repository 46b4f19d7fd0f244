"""What a training leaves beside its checkpoint: the exits' worth and how it went, with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lgvit_edge._support.files import write_json
from lgvit_edge.errors import MissingDependency, TrainingError
from lgvit_edge.model import LGViT
from lgvit_edge.policies.evaluate import summary
from lgvit_edge.policies.picture import by_label, draw
from lgvit_edge.training.data.datasets import Dataset
from lgvit_edge.training.evaluate import accuracy_table, all_logits, exit_costs
from lgvit_edge.training.history import Row, draw_log


def measure(
    model: LGViT, dataset: Dataset, out: Path, console: Console, *, batch_size: int, workers: int
) -> None:
    """Print the accuracy of every exit and write ``<out>.eval.json`` and ``.eval.png``.

    Raises:
        DataError: not one image could be read.
        TrainingError: a file cannot be written.
    """
    with console.status("measuring accuracy"):
        images = all_logits(model, dataset, batch_size, workers=workers)
        found = summary(images, exit_costs(model))
    console.print(accuracy_table(model.config, found["accuracy"]))
    oracle = found["oracle"]
    console.print(
        f"an oracle, leaving at the first exit that is right: {100 * oracle['accuracy']:.2f} % at "
        f"{oracle['layers_speedup']:.2f}x fewer blocks",
        soft_wrap=True,
    )
    target = out.with_suffix(".eval.json")
    picture = target.with_suffix(".png")
    try:
        write_json(target, found)
        title = f"{model.config.family}, {model.config.num_exits} exits, {len(images)} images"
        lines = by_label(found["policies"])
        draw(lines, picture, baseline=images.baseline_accuracy, title=title)
    except MissingDependency as error:
        console.print(f"wrote {target}; no picture: {error}", soft_wrap=True, markup=False)
    except OSError as error:
        raise TrainingError(f"cannot write {target}: {error.strerror}") from None
    else:
        console.print(f"accuracy against speed-up: {target}, {picture}", soft_wrap=True)


def picture_of(history: Sequence[Row], log: Path, console: Console) -> None:
    """The learning curve beside its table; without matplotlib none, and it is said.

    Raises:
        TrainingError: the file cannot be written.
    """
    picture = log.with_suffix(".png")
    try:
        draw_log(history, picture)
    except MissingDependency:
        console.print(f"wrote {log}", soft_wrap=True)
    except OSError as error:
        raise TrainingError(f"cannot write {picture}: {error.strerror}") from None
    else:
        console.print(f"wrote {log}, {picture}", soft_wrap=True)
