"""Trains passes in several ways, and says what each way gives over several seeds.

``python -m lgvit_edge.benchmarks.experiments.passes --data DIR --weights vit_tiny.pth --out DIR``
trains a coarse pass of a trained backbone with and without its teacher, with weights of its own
and shared ones, with exits inside, at several sizes, and three passes. Thresholds are chosen on one
half of the validation images and reported on the other. It writes ``passes.json``, ``passes.md``,
``passes.csv`` and ``passes.png``. Trainings that are done are not repeated, and one that was
interrupted goes on.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from lgvit_edge._support.outputs import replacing, write, write_json
from lgvit_edge._support.terminal import say
from lgvit_edge.architecture.placement import plan_exits
from lgvit_edge.benchmarks.experiments.frame import run_command
from lgvit_edge.benchmarks.experiments.study_rows import Measured, choose, settings
from lgvit_edge.benchmarks.experiments.trainings import (
    kept_answers,
    same_settings,
    seeds_of,
    trained,
)
from lgvit_edge.benchmarks.measure import command_line
from lgvit_edge.cli.options import check_outputs
from lgvit_edge.errors import UsageError
from lgvit_edge.machine.environment import environment
from lgvit_edge.model import LGViT, block_macs, load_model
from lgvit_edge.policies.evaluate import Images
from lgvit_edge.policies.picture import draw
from lgvit_edge.training import TrainingConfig
from lgvit_edge.training.data.datasets import ImageFolder
from lgvit_edge.training.passes import pass_path, pass_sizes, train_passes
from lgvit_edge.training.points import chained

SPEED_UPS = (1.6, 2.0, 2.3)  # in MACs: the most accurate of at least this
DROPS = (0.0, 0.005, 0.01, 0.02)  # of accuracy, 0..1: the fastest that loses at most this
POLICIES = ("confidence", "ensemble")


@dataclass(frozen=True)
class Arm:
    """One way to train passes, apart from the seed."""

    name: str
    sizes: str = "0.5,1"  # as ``pass_sizes`` reads them
    teacher: bool = True
    shared: bool = False
    exits: str = "none"  # of the coarse passes, as ``plan_exits`` reads them


ARMS = (
    Arm("teacher"),
    Arm("no teacher", teacher=False),
    Arm("shared weights", shared=True),
    Arm("shared without teacher", shared=True, teacher=False),
    Arm("exits inside", exits="uniform:2"),
    Arm("three passes", sizes="0.357142857143,0.5,1"),  # 80, 112 and 224
    Arm("smaller", sizes="0.357142857143,1"),
    Arm("larger", sizes="0.714285714286,1"),  # 160
)


def main(
    data: Annotated[Path, typer.Option(help="Folder with train/ and val/, images by class.")],
    out: Annotated[Path, typer.Option(help="Folder for results, checkpoints and answers.")],
    weights: Annotated[Path | None, typer.Option(help="Checkpoint of a trained backbone.")] = None,
    backbone: Annotated[str, typer.Option(help="Architecture, or a checkpoint.")] = "vit-tiny",
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of stage 1.")] = 3,
    heads_epochs: Annotated[int, typer.Option(min=1, help="Epochs of stage 2.")] = 3,
    lr: Annotated[str, typer.Option(help="Learning rates of stage 1 and 2.")] = "5e-5,4e-3",
    layer_decay: Annotated[float, typer.Option(help="As of train.")] = 1.0,
    gamma: Annotated[float, typer.Option(help="The teacher's share of the loss.")] = 0.3,
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    only: Annotated[str, typer.Option(help="Names of arms, separated by commas; or all.")] = "all",
    images: Annotated[int | None, typer.Option(help="Training images. Default: all.")] = None,
    val_images: Annotated[int | None, typer.Option(help="Validation images.")] = None,
    precision: Annotated[str, typer.Option(help="Matrix products in fp32 or bf16.")] = "bf16",
    workers: Annotated[int, typer.Option(help="Processes that decode images.")] = 1,
) -> None:
    """Trains passes in several ways and over several seeds; writes tables and curves."""
    check_outputs({}, {"--out": out})
    names = chosen(only, [arm.name for arm in ARMS])
    arms = [arm for arm in ARMS if arm.name in names]
    config = TrainingConfig(
        order="frozen",
        epochs=(epochs, heads_epochs),
        lr=two_rates(lr),
        layer_decay=layer_decay,
        gamma=gamma,
        min_crop=0.25,
        precision=precision,
        workers=workers,
        cache=True,
        cache_views=1,
    )
    begun = trained(data, backbone, weights, config, images=images, val_images=val_images)
    out.mkdir(parents=True, exist_ok=True)
    study = Study(*begun, out)
    numbers = seeds_of(seeds)
    runs: dict[str, list[Measured]] = {arm.name: [] for arm in arms}
    rows = dict[str, dict[str, Any]]()
    for seed in numbers:  # a seed after the other: all arms have some result early
        for arm in arms:
            runs[arm.name].append(study.measured(arm, config.replace(seed=seed)))
            rows[arm.name] = asdict(arm) | summary(runs[arm.name])
            record = {
                "conditions": {
                    "training": config.identity(),
                    "seeds": numbers,
                    "training_images": len(study.images),
                    "choosing": (len(study.val) + 1) // 2,
                    "reporting": len(study.val) // 2,
                },
                "arms": list(rows.values()),
                "env": environment(),
                "command": command_line(),
            }
            write_results(record, out, "passes", table(record))
    say(f"wrote {out / 'passes.json'}, passes.md, passes.csv, passes.png")


def chosen(only: str, names: Sequence[str]) -> list[str]:
    """Returns the arms that ``--only`` names, in their order.

    Raises:
        UsageError: it names another.
    """
    asked = list(names) if only == "all" else only.split(",")
    if unknown := set(asked) - set(names):
        raise UsageError(f"--only: expected some of {', '.join(names)}; found {min(unknown)!r}")
    return [name for name in names if name in asked]


def two_rates(text: str) -> tuple[float, float]:
    """Returns the two learning rates of ``--lr``; others are a ``UsageError``."""
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--lr: expected two rates such as 5e-5,4e-3, found {text!r}") from None
    return first, second


@dataclass(frozen=True)
class Training:
    """What is trained in one call: one coarse pass, or all passes where they share weights."""

    sizes: tuple[int, ...]  # coarse first; the last is the last pass's
    teacher: bool
    shared: bool
    exits: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its files."""
        kept = self.sizes if self.shared else self.sizes[:-1]
        parts = ["shared"] if self.shared else []
        parts += [str(size) for size in kept]
        parts += ["taught"] if self.teacher else []
        parts += [] if self.exits == "none" else [self.exits.replace(":", "")]
        return "-".join([*parts, str(self.seed)])


@dataclass(frozen=True)
class Study:
    """What all trainings share."""

    model: LGViT  # the last pass, which stays as it is unless weights are shared
    images: ImageFolder
    val: ImageFolder  # one half chooses, the other reports
    out: Path

    def measured(self, arm: Arm, config: TrainingConfig) -> Measured:
        """Returns the logits of an arm's chain on the validation images, trained if need be.

        Raises:
            UsageError: results of other settings are there.
        """
        sizes = pass_sizes(arm.sizes, self.model.config)
        how = (arm.teacher, arm.shared, arm.exits, config.seed)
        if arm.shared:
            return Measured(*chained(*self._trained(Training(sizes, *how), config)))
        models, own = list[LGViT](), list[Images]()
        for size in sizes[:-1]:  # what arms have in common is trained once
            found = self._trained(Training((size, sizes[-1]), *how), config)
            models, own = models + found[0], own + found[1]
        return Measured(*chained([*models, self.model], [*own, self._fine(config)]))

    def _trained(
        self, training: Training, config: TrainingConfig
    ) -> tuple[list[LGViT], list[Images]]:
        """Returns the models that a training gives, and their logits."""
        config = config if training.teacher else config.replace(gamma=0.0)
        identity = {
            **config.identity(),
            **asdict(training),
            "images": self.images.fingerprint(),
            "val": self.val.fingerprint(),
        }
        same_settings(self.out / f"{training.name}.json", self.model, identity)
        checkpoint = self.out / f"{training.name}.pt"
        sizes = training.sizes if training.shared else training.sizes[:-1]
        files = [pass_path(checkpoint, size) for size in sizes]
        if not all(file.is_file() for file in files):
            say(f"training {training.name}")
            self._train(training, config, checkpoint)
        models = [load_model(file) for file in files]
        answers = [
            self._answers(model, file.with_suffix(".npz"), file, config)
            for model, file in zip(models, files, strict=True)
        ]
        return models, answers

    def _fine(self, config: TrainingConfig) -> Images:
        """Returns the logits of the last pass as it is."""
        same_settings(self.out / "fine.json", self.model, {"val": self.val.fingerprint()})
        return self._answers(self.model, self.out / "fine.npz", None, config)

    def _train(self, training: Training, config: TrainingConfig, checkpoint: Path) -> None:
        family, exits = self.model.config.family, []
        for size in training.sizes[:-1]:
            macs = block_macs(self.model.resized(size).config)
            exits.append(plan_exits(training.exits, macs, family=family))
        train_passes(
            self.model,
            self.images,
            None,
            config,
            sizes=training.sizes,
            exits=exits,
            shared=training.shared,
            out=checkpoint,
            # The teacher is the same for all trainings of a seed.
            answers=self.out / f"answers-{config.seed}",
        )

    def _answers(
        self, model: LGViT, stored: Path, checkpoint: Path | None, config: TrainingConfig
    ) -> Images:
        """Returns a model's logits on the validation images, as ``kept_answers`` does."""
        val = self.val.at(model.config.image_size, model.config.preprocess)
        return kept_answers(stored, checkpoint, model, val, config.workers)


def summary(runs: Sequence[Measured]) -> dict[str, Any]:
    """Returns an arm's points and curves over its seeds, from the reporting images."""
    halves = [(run.half(0), run.half(1)) for run in runs]
    goals = [{"speed_up": value} for value in SPEED_UPS] + [{"drop": value} for value in DROPS]
    points = [
        {"policy": policy, **goal, **_point(policy, goal, halves)}
        for policy in POLICIES
        for goal in goals
    ]
    accuracies = np.array([reporting.images.accuracies for _, reporting in halves])
    return {
        "macs": list(runs[0].costs.macs),
        "baseline_macs": runs[0].costs.baseline_macs,
        "exit_accuracies": accuracies.mean(axis=0).tolist(),
        "by_seed": accuracies.tolist(),
        "points": points,
        "curve": _curve(POLICIES[1], [reporting for _, reporting in halves]),
    }


def _point(
    policy: str, goal: dict[str, float], halves: Sequence[tuple[Measured, Measured]]
) -> dict[str, Any]:
    """Returns mean and standard error over seeds; None where a seed does not reach the goal."""
    found = []
    for choosing, reporting in halves:
        best = choose(policy, choosing, **goal)
        if best is None:
            return {"accuracy": None}
        outcome = reporting.gives(best)
        found.append((outcome, outcome.accuracy - reporting.images.baseline_accuracy))
    values = {
        "accuracy": [outcome.accuracy for outcome, _ in found],
        "change": [change for _, change in found],
        "macs_speedup": [outcome.macs_speedup for outcome, _ in found],
    }
    point: dict[str, Any] = {"chosen": [outcome.policy.to_json() for outcome, _ in found]}
    for name, each in values.items():
        error = statistics.stdev(each) / len(each) ** 0.5 if len(each) > 1 else None
        point |= {name: statistics.fmean(each), f"{name}_error": error, f"{name}_by_seed": each}
    return point


def _curve(policy: str, reporting: Sequence[Measured]) -> list[dict[str, float]]:
    """Returns accuracy and speed-up, means over seeds, of every setting that exits early."""
    rows, exits = [], reporting[0].images.exits
    for setting in (each for each in settings(policy, exits) if each.stops_early(exits)):
        outcomes = [one.gives(setting) for one in reporting]
        rows.append(
            {
                "accuracy": statistics.fmean(outcome.accuracy for outcome in outcomes),
                "macs_speedup": statistics.fmean(outcome.macs_speedup for outcome in outcomes),
            }
        )
    return rows


def write_results(record: dict[str, Any], out: Path, name: str, text: str) -> None:
    """Writes ``<name>.json``, its ``text`` as Markdown, a row per seed as CSV, and curves."""
    write_json(out / f"{name}.json", record)
    write(out / f"{name}.md", text)
    columns = ("arm", "policy", "speed_up", "drop", "seed", "accuracy", "change", "macs_speedup")
    with replacing(out / f"{name}.csv") as partial, partial.open("w", newline="") as file:
        rows = csv.DictWriter(file, columns, lineterminator="\n")
        rows.writeheader()
        rows.writerows(raw(record))
    base = record["arms"][0]["exit_accuracies"][-1]
    draw(
        {arm["name"]: arm["curve"] for arm in record["arms"]},
        out / f"{name}.png",
        baseline=base,
        base="the last pass alone",
        title=f"{record['conditions']['reporting']} held-out images, answers of passes added",
        limits=((0.9, 3.5), (100 * base - 5, 100 * base + 3)),
    )


def raw(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns a row for every arm, policy, goal and seed that reached it."""
    rows = []
    for arm in record["arms"]:
        for point in arm["points"]:
            goal = {key: point[key] for key in ("policy", "speed_up", "drop") if key in point}
            if point["accuracy"] is None:
                continue
            for place, accuracy in enumerate(point["accuracy_by_seed"]):
                each = {k: point[f"{k}_by_seed"][place] for k in ("change", "macs_speedup")}
                seed = record["conditions"]["seeds"][place]
                rows.append(
                    {"arm": arm["name"], **goal, "seed": seed, "accuracy": accuracy, **each}
                )
    return rows


def table(record: dict[str, Any]) -> str:
    """Returns the arms as Markdown: change of accuracy against the last pass, and speed-up."""
    lines = ["| arm | policy | goal | change, points | MACs x |", "|---|---|---|---|---|"]
    for arm in record["arms"]:
        for point in arm["points"]:
            goal = (
                f">= {point['speed_up']}x"
                if "speed_up" in point
                else f"losing <= {100 * point['drop']:g} points"
            )
            cells = ["not reached", "-"]
            if point["accuracy"] is not None:
                cells = [
                    f"{100 * point['change']:+.2f}" + _error(point["change_error"], 100),
                    f"{point['macs_speedup']:.2f}" + _error(point["macs_speedup_error"], 1),
                ]
            lines.append(f"| {arm['name']} | {point['policy']} | {goal} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _error(value: float | None, scale: float) -> str:
    return "" if value is None else f" +- {scale * value:.2f}"


if __name__ == "__main__":
    run_command(main)
