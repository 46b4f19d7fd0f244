"""Trains exits in several orders and at several rates: do early ones gain, or learn by heart?

``python -m lgvit_edge.benchmarks.experiments.orders --data DIR --backbone model.pt --out DIR``
begins with a trained backbone and compares stage 2 alone with stage 1 before it, at rates up to
1e-3. Beside the accuracy of every exit on validation images stands that on training images: a
backbone knows the images that it has learnt from, and heads may learn that. It writes
``orders.json`` and ``orders.md``. Trainings that are done are not repeated, and one that was
interrupted goes on.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from lgvit_edge._support.outputs import write, write_json
from lgvit_edge._support.terminal import say
from lgvit_edge.architecture.placement import plan_exits
from lgvit_edge.benchmarks.experiments.frame import run_command
from lgvit_edge.benchmarks.experiments.trainings import (
    kept_answers,
    same_settings,
    seeds_of,
    some,
    trained,
)
from lgvit_edge.benchmarks.measure import command_line
from lgvit_edge.cli.options import check_outputs
from lgvit_edge.errors import UsageError
from lgvit_edge.machine.environment import environment
from lgvit_edge.model import LGViT, block_macs, load_model
from lgvit_edge.training import TrainingConfig, train
from lgvit_edge.training.data.datasets import ImageFolder
from lgvit_edge.training.start import attach_exits
from lgvit_edge.training.teacher import Teacher


@dataclass(frozen=True)
class Arm:
    """One way to train exits, apart from the seed."""

    name: str
    order: str = "joint"
    lr: float = 5e-5  # of the backbone in stage 1
    layer_decay: float = 1.0
    teacher: bool = False  # the backbone as it was


ARMS = (
    Arm("frozen", "frozen"),
    Arm("joint at 5e-5"),
    Arm("joint at 3e-4", lr=3e-4, layer_decay=0.75),
    Arm("joint at 1e-3", lr=1e-3, layer_decay=0.75),
    Arm("joint at 3e-4, teacher", lr=3e-4, layer_decay=0.75, teacher=True),
    Arm("mixed at 3e-4", "mixed", lr=3e-4, layer_decay=0.75),
)


def main(
    data: Annotated[Path, typer.Option(help="Folder with train/ and val/, images by class.")],
    out: Annotated[Path, typer.Option(help="Folder for results, checkpoints and answers.")],
    backbone: Annotated[str, typer.Option(help="Architecture, or a checkpoint.")],
    weights: Annotated[Path | None, typer.Option(help="Checkpoint of a trained backbone.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Default: the backbone's.")] = None,
    exits: Annotated[str, typer.Option(help="Blocks of the exits.")] = "uniform:8",
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of stage 1.")] = 10,
    heads_epochs: Annotated[int, typer.Option(min=1, help="Epochs of stage 2.")] = 3,
    head_lr: Annotated[float, typer.Option(help="Learning rate of heads, in both stages.")] = 4e-3,
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    only: Annotated[str, typer.Option(help="Names of arms, separated by ;, or all.")] = "all",
    images: Annotated[int | None, typer.Option(help="Training images. Default: all.")] = None,
    val_images: Annotated[int | None, typer.Option(help="Validation images.")] = None,
    precision: Annotated[str, typer.Option(help="Matrix products in fp32 or bf16.")] = "bf16",
    workers: Annotated[int, typer.Option(help="Processes that decode images.")] = 1,
) -> None:
    """Trains exits in several orders and over several seeds; writes a table."""
    check_outputs({}, {"--out": out})
    names = [arm.name for arm in ARMS] if only == "all" else only.split(";")
    if unknown := set(names) - {arm.name for arm in ARMS}:
        known = "; ".join(arm.name for arm in ARMS)
        raise UsageError(f"--only: expected some of {known}; found {unknown.pop()!r}")
    config = TrainingConfig(
        epochs=(epochs, heads_epochs),
        min_crop=0.25,
        precision=precision,
        workers=workers,
        cache=True,
        cache_views=1,
    )
    begun = trained(
        data,
        backbone,
        weights,
        config,
        images=images,
        val_images=val_images,
        image_size=image_size,
    )
    out.mkdir(parents=True, exist_ok=True)
    study = Study(*begun, exits, out)
    numbers = seeds_of(seeds)
    runs: dict[str, list[dict[str, list[float]]]] = {name: [] for name in names}
    for seed in numbers:  # a seed after the other: all arms have some result early
        for arm in (arm for arm in ARMS if arm.name in names):
            how = config.replace(
                order=arm.order,
                lr=(arm.lr, head_lr),
                layer_decay=arm.layer_decay,
                seed=seed,
            )
            runs[arm.name].append(study.accuracies(arm, how))
            record = {
                "conditions": {
                    "training": config.replace(lr=(ARMS[0].lr, head_lr)).identity(),
                    "seeds": numbers,
                    "training_images": len(study.images),
                    "validation_images": len(study.val),
                    "exits": [exit.block for exit in study.begin(seed).config.exits],
                },
                "arms": [asdict(a) | {"runs": runs[a.name]} for a in ARMS if runs.get(a.name)],
                "env": environment(),
                "command": command_line(),
            }
            write_json(out / "orders.json", record)
            write(out / "orders.md", table(record))
    say(f"wrote {out / 'orders.json'}, orders.md")


@dataclass(frozen=True)
class Study:
    """What all trainings share."""

    model: LGViT  # without exits
    images: ImageFolder
    val: ImageFolder
    exits: str  # as ``plan_exits`` reads them
    out: Path

    def begin(self, seed: int) -> LGViT:
        """Returns the model with fresh heads."""
        config = self.model.config
        planned = plan_exits(self.exits, block_macs(config), family=config.family)
        return attach_exits(self.model, planned, seed=seed)

    def accuracies(self, arm: Arm, config: TrainingConfig) -> dict[str, list[float]]:
        """Returns the accuracy of every exit on validation and on training images, 0..1.

        Raises:
            UsageError: results of other settings are there.
        """
        name = f"{arm.name.replace(',', '').replace(' ', '-')}-{config.seed}"
        described, checkpoint = self.out / f"{name}.json", self.out / f"{name}.pt"
        identity = {
            **config.identity(),
            "exits": self.exits,
            "images": self.images.fingerprint(),
            "val": self.val.fingerprint(),
        }
        same_settings(described, self.model, identity)
        if not checkpoint.is_file():
            say(f"training {name}")
            teacher = None
            if arm.teacher:
                teacher = Teacher(self.model, self.images, self.out / f"answers-{config.seed}")
            begin = self.begin(config.seed)
            train(begin, self.images, None, config, out=checkpoint, teacher=teacher)
        model = load_model(checkpoint)
        # As many training images as validation images, prepared as at inference.
        known = some(self.images, min(len(self.images), len(self.val)))
        return {
            part: kept_answers(
                self.out / f"{name}.{part}.npz", checkpoint, model, images, config.workers
            ).accuracies
            for part, images in (("val", self.val), ("train", known))
        }


def table(record: dict[str, Any]) -> str:
    """Returns the arms as Markdown: accuracy by exit, mean over seeds, and the gap to training."""
    blocks = [str(block) for block in record["conditions"]["exits"]]
    heads = ["arm", *(f"after {block}" for block in blocks), "final", "gap, first half", "final"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for arm in record["arms"]:
        val, known = (
            np.array([run[part] for run in arm["runs"]]) * 100 for part in ("val", "train")
        )
        gap, half = known - val, max(1, len(blocks) // 2)
        cells = [_with_error(val[:, place]) for place in range(val.shape[1])]
        cells += [_with_error(gap[:, :half].mean(axis=1)), _with_error(gap[:, -1])]
        lines.append(f"| {arm['name']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _with_error(values: Sequence[float] | Any) -> str:
    each = [float(value) for value in values]
    error = f" +- {statistics.stdev(each) / len(each) ** 0.5:.1f}" if len(each) > 1 else ""
    return f"{statistics.fmean(each):.1f}{error}"


if __name__ == "__main__":
    run_command(main)
