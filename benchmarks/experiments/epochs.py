"""Times an epoch of stage 2 from stored features against one that runs the frozen backbone.

``python -m lgvit_edge.benchmarks.experiments.epochs --data tiny-imagenet-200/train --weights
vit_tiny.pth`` trains the same heads on the same images both ways, in turn, and compares times
and losses.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from lgvit_edge._support.terminal import console, say
from lgvit_edge.architecture.placement import plan_exits
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, run_command
from lgvit_edge.benchmarks.report.terminal import table_of
from lgvit_edge.images.labelled import evenly
from lgvit_edge.model import LGViT, block_macs
from lgvit_edge.training import TrainingConfig
from lgvit_edge.training.data.batches import Batches
from lgvit_edge.training.data.datasets import ImageFolder
from lgvit_edge.training.features import FeatureStore, StoredStates
from lgvit_edge.training.optimiser import adamw
from lgvit_edge.training.stages import StageTwo
from lgvit_edge.training.start import attach_exits, load_start


class _Plain(ImageFolder):
    """Images without augmentation, so that both ways train on the same."""

    def image(self, index: int, rng: np.random.Generator | None) -> Any:
        return super().image(index, None)


def main(
    data: Annotated[Path, typer.Option(help="Images: a sub-folder per class.")],
    weights: Annotated[Path, typer.Option(help="Checkpoint of the trained backbone.")],
    backbone: Annotated[str, typer.Option(help="Architecture of the backbone.")] = "vit-tiny",
    images: Annotated[int, typer.Option(min=64, help="Number of images of all classes.")] = 1280,
    rounds: Annotated[int, typer.Option(min=1, help="Epochs per way.")] = 3,
    heads: Annotated[str, typer.Option(help="Kinds of heads, separated by commas.")] = "lgvit,mlp",
    json_file: JsonFile = None,
) -> None:
    """Times an epoch of stage 2 both ways."""
    record, rows = Record(json_file), list[dict[str, Any]]()
    plain = load_start(backbone, weights, num_classes=0, seed=0).eval()
    folder = _Plain(
        data,
        size=plain.config.image_size,
        preprocess=plain.config.preprocess,
        classes=plain.config.labels,
    )
    chosen = list(evenly(range(len(folder)), images))
    folder.paths, folder.labels = [folder.paths[i] for i in chosen], folder.labels[chosen]
    for kind in heads.split(","):
        config = plain.config
        exits = plan_exits("uniform:8", block_macs(config), heads=kind, family=config.family)
        for precision in ("fp32", "bf16"):
            settings = TrainingConfig(precision=precision, lr=(1e-3, 1e-3))
            row = _compare(attach_exits(plain, exits), folder, settings, rounds)
            rows.append({"heads": kind, "precision": precision, **row})
    cells = (
        "{heads} | {precision} | {backbone_s:.1f} | {kept_s:.1f} | {ratio:.2f} | "
        "{loss_difference:.1e}"
    )
    medians = [
        row | {key: statistics.median(row[key]) for key in ("backbone_s", "kept_s")} for row in rows
    ]
    numbers = ("backbone (s)", "stored (s)", "ratio", "loss differs by")
    say(f"{len(folder)} images, {record.env['cpu']}; medians of {rounds} epochs in turn")
    console.print(table_of(medians, cells, "heads", "precision", numbers=numbers))
    record.write(images=len(folder), rows=rows)


def _compare(
    model: LGViT, folder: ImageFolder, config: TrainingConfig, rounds: int
) -> dict[str, Any]:
    batches = Batches(folder, model.config.preprocess, batch_size=config.batch_size, workers=2)
    with tempfile.TemporaryDirectory() as features:
        store = FeatureStore(features, model, batches, config)
        store.fill()
        states = model.state_dict()
        start = {name: tensor.clone() for name, tensor in states.items()}
        times: dict[str, list[float]] = {"backbone": [], "stored": []}
        losses: dict[str, list[float]] = {}
        for _ in range(rounds):
            for way, cache in (("backbone", None), ("stored", store)):
                model.load_state_dict(start)
                seconds, losses[way] = _epoch(model, config, batches, cache)
                times[way].append(seconds)
    medians = {way: statistics.median(seconds) for way, seconds in times.items()}
    pairs = zip(losses["backbone"], losses["stored"], strict=True)
    return {
        "backbone_s": times["backbone"],
        "kept_s": times["stored"],
        "ratio": medians["backbone"] / medians["stored"],
        "loss_difference": max(abs(a - b) / abs(a) for a, b in pairs),
    }


def _epoch(
    model: LGViT, config: TrainingConfig, batches: Batches, cache: StoredStates | None
) -> tuple[float, list[float]]:
    """Returns the epoch's seconds and the loss of every step."""
    stage = StageTwo(model, config, batches, cache)
    stage.start()
    optimizer = adamw(
        stage.parameters(),
        weight_decay=config.weight_decay,
        clip=config.clip,
        scales=stage.scales(batches.team.total),
    )
    for group in optimizer.param_groups:
        group["lr"] = config.lr[1]
    losses = []
    begun = time.perf_counter()
    for step in stage.steps(0, 0):
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
        losses.append(float(step.loss.detach()))
    return time.perf_counter() - begun, losses


if __name__ == "__main__":
    run_command(main)
