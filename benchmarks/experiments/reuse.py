"""Says whether a fine pass gains from reusing what the coarse pass computed.

``python -m lgvit_edge.benchmarks.experiments.reuse --data DIR --weights vit_tiny.pth --coarse DIR
--out DIR`` trains the fine pass of a trained backbone in several ways over several seeds, all with
the same images, epochs and rates; the control reuses nothing. ``--coarse`` is where ``passes`` left
its coarse passes of half the image size, taught by the backbone. Thresholds are chosen on one half
of the validation images and reported on the other. It writes ``reuse.json``, ``reuse.md``,
``reuse.csv`` and ``reuse.png``. Trainings that are done are not repeated, and one that was
interrupted goes on after its last epoch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from lgvit_edge._support.terminal import say
from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.benchmarks.experiments.frame import run_command
from lgvit_edge.benchmarks.experiments.passes import (
    SPEED_UPS,
    Training,
    chosen,
    summary,
    table,
    two_rates,
    write_results,
)
from lgvit_edge.benchmarks.experiments.reuse_arms import (
    FinePass,
    Refined,
    WithFeatures,
    chain_costs,
    check_passes,
)
from lgvit_edge.benchmarks.experiments.reuse_training import chain_answers, train_fine
from lgvit_edge.benchmarks.experiments.study_rows import Measured
from lgvit_edge.benchmarks.experiments.trainings import kept, same_settings, seeds_of, trained
from lgvit_edge.benchmarks.measure import command_line
from lgvit_edge.cli.options import check_outputs
from lgvit_edge.errors import UsageError
from lgvit_edge.machine.environment import environment
from lgvit_edge.model import LGViT, load_model
from lgvit_edge.policies import from_json
from lgvit_edge.policies.evaluate import Images
from lgvit_edge.training import TrainingConfig
from lgvit_edge.training.data.datasets import ImageFolder
from lgvit_edge.training.passes import pass_path, pass_sizes
from lgvit_edge.training.resume import weights_hash


@dataclass(frozen=True)
class Arm:
    """One way to make the fine pass: of the network, the coarse pass, and the share refined."""

    name: str
    make: Callable[[LGViT, LGViTConfig, float], FinePass]
    refines: bool = False  # whether the share matters


AS_IT_IS, CONTROL = "as it is", "control"  # the fine pass untrained, and trained without reuse
ARMS = (
    Arm(AS_IT_IS, lambda fine, coarse, share: FinePass(fine)),
    Arm(CONTROL, lambda fine, coarse, share: FinePass(fine)),
    Arm("features input", lambda fine, coarse, share: WithFeatures(fine, coarse, where="input")),
    Arm("features blocks", lambda fine, coarse, share: WithFeatures(fine, coarse, where="blocks")),
    Arm("refined", lambda fine, coarse, share: Refined(fine, coarse, share=share), refines=True),
    Arm(
        "refined features",
        lambda fine, coarse, share: Refined(fine, coarse, share=share, features=True),
        refines=True,
    ),
)


def main(
    data: Annotated[Path, typer.Option(help="Folder with train/ and val/, images by class.")],
    coarse: Annotated[Path, typer.Option(help="Folder of coarse passes, as passes leaves them.")],
    out: Annotated[Path, typer.Option(help="Folder for results, checkpoints and answers.")],
    weights: Annotated[Path | None, typer.Option(help="Checkpoint of a trained backbone.")] = None,
    backbone: Annotated[str, typer.Option(help="Architecture, or a checkpoint.")] = "vit-tiny",
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each training.")] = 3,
    lr: Annotated[str, typer.Option(help="Rates of the network and of new layers.")] = "5e-5,5e-4",
    layer_decay: Annotated[float, typer.Option(help="As of train.")] = 1.0,
    share: Annotated[float, typer.Option(help="Of coarse patches that is refined, 0..1.")] = 0.5,
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    only: Annotated[str, typer.Option(help="Names of arms, separated by commas; or all.")] = "all",
    images: Annotated[int | None, typer.Option(help="Training images. Default: all.")] = None,
    val_images: Annotated[int | None, typer.Option(help="Validation images.")] = None,
    precision: Annotated[str, typer.Option(help="Matrix products in fp32 or bf16.")] = "bf16",
    workers: Annotated[int, typer.Option(help="Processes that decode images, each size.")] = 1,
) -> None:
    """Trains fine passes that reuse the coarse pass in several ways; writes tables and curves."""
    check_outputs({}, {"--out": out})
    names = [AS_IT_IS, *chosen(only, [arm.name for arm in ARMS[1:]])]
    if not 0 < share <= 1:
        raise UsageError(f"--share: expected above 0 and at most 1, found {share:g}")
    config = TrainingConfig(
        order="frozen",  # so that the backbone's classifier stays
        epochs=(epochs, epochs),
        lr=two_rates(lr),
        layer_decay=layer_decay,
        min_crop=0.25,
        precision=precision,
        workers=workers,
    )
    begun = trained(data, backbone, weights, config, images=images, val_images=val_images)
    numbers = seeds_of(seeds)
    beginnings = {seed: _coarse(coarse, begun[0].config, seed) for seed in numbers}
    out.mkdir(parents=True, exist_ok=True)
    study = Study(*begun, share, out)
    arms = [arm for arm in ARMS if arm.name in names]
    runs: dict[str, list[Measured]] = {arm.name: [] for arm in arms}
    rows = dict[str, dict[str, Any]]()
    for seed, model in beginnings.items():  # a seed after the other: all have some result early
        own = config.replace(seed=seed, order="whole")
        plain = study.answers(arms[0], model, own).right[:, -1]
        for arm in arms:
            runs[arm.name].append(study.measured(arm, model, own, plain))
            rows[arm.name] = {"name": arm.name} | summary(runs[arm.name])
            record: dict[str, Any] = {
                "conditions": {
                    "training": config.replace(order="whole").identity(),
                    "share": share,
                    "seeds": numbers,
                    "training_images": len(study.images),
                    "choosing": (len(study.val) + 1) // 2,
                    "reporting": len(study.val) // 2,
                },
                "arms": list(rows.values()),
                "env": environment(),
                "command": command_line(),
            }
            record["gains"] = gains(list(rows.values()), runs)
            write_results(record, out, "reuse", table(record) + "\n" + gains_table(record))
    say(f"wrote {out / 'reuse.json'}, reuse.md, reuse.csv, reuse.png")


def _coarse(folder: Path, fine: LGViTConfig, seed: int) -> LGViT:
    """Returns the coarse pass of a seed, from the folder or one below it.

    Raises:
        UsageError: there is none, there are several, or it does not fit the fine pass.
    """
    sizes = pass_sizes("0.5,1", fine)
    training = Training(sizes, teacher=True, shared=False, exits="none", seed=seed)
    name = pass_path(Path(f"{training.name}.pt"), sizes[0]).name
    found = sorted(folder.rglob(name))
    if len(found) != 1:
        raise UsageError(
            f"--coarse: expected one {name} in {folder}, found {len(found)}; it is made by: "
            f"python -m lgvit_edge.benchmarks.experiments.passes --only teacher --seeds {seed}"
        )
    model = load_model(found[0])
    check_passes(model.config, fine)
    return model.eval()


@dataclass(frozen=True)
class Study:
    """What all trainings share."""

    fine: LGViT  # where each of them begins
    images: ImageFolder
    val: ImageFolder  # one half chooses, the other reports
    share: float
    out: Path

    @cached_property
    def _identity(self) -> dict[str, Any]:
        return {
            "training images": self.images.fingerprint(),
            "val": self.val.fingerprint(),
        }

    def measured(
        self, arm: Arm, coarse: LGViT, config: TrainingConfig, plain: NDArray[np.bool_]
    ) -> Measured:
        """Returns an arm's chain on the validation images, trained if need be.

        Its baseline is the fine pass as it is, which is right where ``plain`` says so.

        Raises:
            UsageError, TrainingError: results of other settings are there.
        """
        found = self.answers(arm, coarse, config)
        costs = chain_costs(coarse, self._fine(arm, coarse, config.seed))
        return _Against(_Answers(found.logits, found.labels, plain), costs)

    def answers(self, arm: Arm, coarse: LGViT, config: TrainingConfig) -> Images:
        """Returns the logits of both passes on the validation images, trained if need be."""
        share = self.share if arm.refines else None  # the others serve every share
        name = arm.name if share is None else f"{arm.name} {share:g}"
        place = self.out / f"{name.replace(' ', '-')}-{config.seed}.pt"
        identity = {
            **config.identity(),
            **self._identity,
            "arm": arm.name,
            "share": share,
            "coarse weights": weights_hash(coarse),
        }
        same_settings(place.with_suffix(".json"), self.fine, identity)

        def compute() -> Images:
            fine = self._fine(arm, coarse, config.seed)
            if arm.name != AS_IT_IS:
                say(f"training {place.stem}")
                told = {name: repr(value) for name, value in identity.items()}
                train_fine(fine, coarse, self.images, config, place, told)
            found = chain_answers(fine, coarse, self.val, config)
            coarse.cpu()
            return found

        return kept(place.with_suffix(".npz"), place, compute)

    def _fine(self, arm: Arm, coarse: LGViT, seed: int) -> FinePass:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return arm.make(copy.deepcopy(self.fine), coarse.config, self.share)


@dataclass(frozen=True)
class _Answers(Images):
    """Logits of a chain whose baseline is another network than the chain's last."""

    plain: NDArray[np.bool_]  # whether that network is right, [n]

    @property
    def baseline_right(self) -> NDArray[np.bool_]:
        return self.plain


@dataclass(frozen=True)
class _Against(Measured):
    """A chain measured against another network."""

    images: _Answers

    def half(self, odd: int) -> Measured:
        logits, labels, plain = self.images.logits, self.images.labels, self.images.plain
        return _Against(_Answers(logits[odd::2], labels[odd::2], plain[odd::2]), self.costs)


def gains(
    arms: Sequence[Mapping[str, Any]], runs: Mapping[str, Sequence[Measured]]
) -> list[dict[str, Any]]:
    """Returns each arm's accuracy beyond the control's, at each goal of speed.

    The standard error is that over the reporting images, seeds averaged: all seeds share these
    images, so their agreement alone, in ``by_seed``, does not tell it.
    """
    by_name = {arm["name"]: arm for arm in arms}
    rows = list[dict[str, Any]]()
    if CONTROL not in by_name:
        return rows
    for arm in arms:
        if arm["name"] in (AS_IT_IS, CONTROL):
            continue
        for own, other in zip(arm["points"], by_name[CONTROL]["points"], strict=True):
            if own.get("speed_up") not in SPEED_UPS or None in (own["accuracy"], other["accuracy"]):
                continue
            seeds = len(runs[arm["name"]])  # the control may be a seed ahead
            right = [
                _right(point, runs[name][:seeds])
                for name, point in ((arm["name"], own), (CONTROL, other))
            ]
            change = right[0] - right[1]
            rows.append(
                {
                    "arm": arm["name"],
                    "policy": own["policy"],
                    "speed_up": own["speed_up"],
                    "gain": float(change.mean()),
                    "error": float(change.mean(axis=0).std() / change.shape[1] ** 0.5),
                    "by_seed": change.mean(axis=1).tolist(),
                }
            )
    return rows


def _right(point: Mapping[str, Any], runs: Sequence[Measured]) -> NDArray[np.float64]:
    """Returns whether a point's policies are right on the reporting images, ``[seeds, n]``."""
    rows = []
    for policy, run in zip(point["chosen"], runs, strict=False):
        images = run.half(1).images
        _, classes = from_json(policy).replay(images.logits)
        rows.append(classes == images.labels)
    return np.array(rows, np.float64)


def gains_table(record: Mapping[str, Any]) -> str:
    """Returns the gains as Markdown, in points of accuracy."""
    lines = ["| arm | policy | goal | against the control, points |", "|---|---|---|---|"]
    lines += [
        f"| {row['arm']} | {row['policy']} | >= {row['speed_up']}x | "
        f"{100 * row['gain']:+.2f} +- {100 * row['error']:.2f} |"
        for row in record["gains"]
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_command(main)
