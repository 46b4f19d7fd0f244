"""Runs one training of the study: its heads, its logits, and its row of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lgvit_edge._support.terminal import progress_bar, say
from lgvit_edge.architecture.placement import plan_exits
from lgvit_edge.benchmarks.experiments.trainings import kept_bundle, same_settings
from lgvit_edge.benchmarks.measure import measure_images
from lgvit_edge.errors import DataError
from lgvit_edge.images.labelled import LabelledImage, evenly
from lgvit_edge.model import LGViT, block_macs, count_parameters, load_model
from lgvit_edge.policies import POLICIES, Never, Policy, from_json
from lgvit_edge.policies.evaluate import ExitCosts, Images, Outcome, evaluate
from lgvit_edge.runtime import Session
from lgvit_edge.training import TrainingConfig, train
from lgvit_edge.training.data.batches import Batches
from lgvit_edge.training.data.datasets import ImageFolder
from lgvit_edge.training.features import FeatureStore
from lgvit_edge.training.report import exit_costs
from lgvit_edge.training.start import attach_exits

# Learning rates, by trial: at the higher one an encoder block as a head learns nothing.
RATE, RATES = 4e-3, {"encoder": 1e-3}
SPEED_UP, DROP = 1.6, 0.02  # methods are compared at this one in MACs, and this loss of accuracy
_MEASURED = 500  # images of the reporting half on which wall clock is measured
_STEPS = 200  # number of settings tried per policy


@dataclass(frozen=True)
class Case:
    """The training and policy behind one row of a table; settings are as ``train`` takes them."""

    name: str
    heads: str = "lgvit"
    exits: str = "uniform:8"
    scheme: str = "lgvit"
    policy: str = "confidence"
    kl: str = "image"

    @property
    def learned_by(self) -> str:
        """The scheme that gives the same heads where the backbone is frozen."""
        return "normal" if self.scheme == "alternating" else self.scheme

    @property
    def training(self) -> str:
        """Name of the checkpoint; rows that differ in their policy alone share it."""
        name = f"{self.heads}-{self.exits.replace(':', '')}-{self.learned_by}"
        return name if self.kl == "image" else f"{name}-{self.kl}"


@dataclass(frozen=True)
class Measured:
    """The logits of a trained model on labelled images, and its costs."""

    images: Images
    costs: ExitCosts  # nothing is timed

    def half(self, odd: int) -> Measured:
        """Returns every other image: the even ones, or the ``odd``."""
        logits, labels = self.images.logits, self.images.labels
        return Measured(Images(logits[odd::2], labels[odd::2]), self.costs)

    def gives(self, policy: Policy) -> Outcome:
        """Returns the outcome of a policy on the images."""
        return evaluate(policy, self.images, self.costs)


def settings(policy: str, exits: int) -> list[Policy]:
    """Returns fine settings of a policy, from least to most careful."""
    return [*POLICIES[policy].settings(exits, _STEPS), Never()]


def choose(
    policy: str, tuning: Measured, *, speed_up: float | None = None, drop: float | None = None
) -> Policy | None:
    """Returns the best setting on the tuning images, or None where no setting does.

    That is the most accurate of those at least ``speed_up`` times faster in MACs, or the fastest of
    those that lose at most ``drop`` of accuracy, 0..1.
    """
    tried = [tuning.gives(setting) for setting in settings(policy, tuning.images.exits)]
    if speed_up is not None:
        good = [(t.accuracy, t) for t in tried if t.macs_speedup >= speed_up]
    else:
        least = tuning.images.baseline_accuracy - (drop or 0.0)
        good = [(t.macs_speedup, t) for t in tried if t.accuracy >= least]
    return max(good, key=lambda pair: pair[0])[1].policy if good else None


def curve(policy: str, reporting: Measured) -> list[dict[str, Any]]:
    """Returns every setting's outcome on the reporting images, slowest first."""
    points = [reporting.gives(setting) for setting in settings(policy, reporting.images.exits)]
    return [point.to_json() for point in sorted(points, key=lambda point: point.macs_speedup)]


@dataclass(frozen=True)
class Study:
    """Settings and images that all trainings share."""

    backbone: LGViT  # frozen, without exits
    train: ImageFolder
    val: ImageFolder  # one half tunes, the other reports
    config: TrainingConfig  # apart from the scheme
    out: Path  # folder of results, checkpoints and features

    def model(self, case: Case) -> LGViT:
        """Returns the model with the case's heads, trained unless its checkpoint exists.

        Raises:
            UsageError: the checkpoint is of a study with other settings.
        """
        checkpoint = self.out / f"{case.training}.pt"
        rate = RATES.get(case.heads, RATE)
        how = {"scheme": case.learned_by, "kl": case.kl, "lr": (rate, rate), "order": "frozen"}
        config = self.config.replace(**how)
        identity = {
            **config.identity(),
            "heads": case.heads,
            "exits": case.exits,
            "images": self.train.fingerprint(),
            "val": self.val.fingerprint(),
        }
        same_settings(self.out / f"{case.training}.json", self.backbone, identity)
        if checkpoint.is_file():
            return load_model(checkpoint)
        say(f"training {case.training}")
        model, folder = self._fresh(case), self.out / "features"
        return train(model, self.train, None, config, out=checkpoint, features=folder)

    def _fresh(self, case: Case) -> LGViT:
        config = self.backbone.config
        macs = block_macs(config)
        exits = plan_exits(case.exits, macs, heads=case.heads, family=config.family)
        labels = config.labels or self.train.classes
        return attach_exits(self.backbone, exits, labels=labels, seed=self.config.seed)

    def keep_features(self, cases: Sequence[Case]) -> None:
        """Runs the backbone once for the exits of all cases and stores its outputs."""
        blocks = {exit.block for case in cases for exit in self._fresh(case).config.exits}
        val = self._val_features(self.backbone, blocks)
        for store in (self._store("features", self.backbone, self.train, self.config, blocks), val):
            say(f"features of {store.images} images take {store.bytes / 1e9:.1f} GB")
            with progress_bar("frozen blocks") as progress:
                store.fill(progress)
        if val.unreadable:  # else wall clock would be measured on other halves
            raise DataError(
                f"{self.val.folder}: {val.unreadable} images cannot be read; remove them"
            )

    def _val_features(self, model: LGViT, blocks: set[int]) -> FeatureStore:
        plain = self.config.replace(cache_views=0, precision="fp32")
        return self._store("val-features", model, self.val, plain, blocks)

    def _store(
        self, name: str, model: LGViT, images: ImageFolder, config: TrainingConfig, blocks: set[int]
    ) -> FeatureStore:
        batches = Batches(images, model.config.preprocess, batch_size=64, workers=config.workers)
        return FeatureStore(self.out / name, model, batches, config, blocks=sorted(blocks))

    @torch.no_grad()
    def measured(self, model: LGViT) -> Measured:
        """Returns the logits of all exits on the validation images, from stored features."""
        store = self._val_features(model, set())
        store.attach()
        logits, labels = [], []
        for states in store.ordered(100):
            exits = [head(x) for head, x in zip(model.heads, states.exits, strict=True)]
            logits.append(torch.stack([*exits, states.teacher], dim=1).numpy())
            labels.append(states.labels.numpy())
        images = Images(np.concatenate(logits), np.concatenate(labels))
        return Measured(images, exit_costs(model))

    def row(self, case: Case) -> dict[str, Any]:
        """Returns the case's row of a table."""
        model = self.model(case)
        measured = self.measured(model)
        images, costs = measured.images, measured.costs
        tuning, reporting = measured.half(0), measured.half(1)
        fast = choose(case.policy, tuning, speed_up=SPEED_UP)
        sure = choose(case.policy, tuning, drop=DROP)
        at_speedup = fast and reporting.gives(fast).to_json()
        if at_speedup:
            at_speedup |= self._wall_clock(case, model, at_speedup["policy"])
        return {
            "baseline": {"accuracy_all": images.baseline_accuracy, "macs": costs.baseline_macs},
            "curve": curve(case.policy, reporting),
            "parameters": count_parameters(model),
            "blocks": list(costs.blocks),
            "accuracies": reporting.images.accuracies,
            "at_speedup": at_speedup,
            "at_accuracy": sure and reporting.gives(sure).to_json(),
        }

    def _wall_clock(self, case: Case, model: LGViT, policy: dict[str, Any]) -> dict[str, Any]:
        """Measures the exported chain on some of the reporting images."""
        bundle = self.out / "bundles" / case.training
        kept_bundle(model, bundle, self.out / f"{case.training}.pt", from_json(policy))
        pairs = zip(self.val.paths, self.val.labels, strict=True)
        images = [LabelledImage(path, int(label)) for path, label in pairs][1::2]
        with Session.open(bundle) as session:
            record = measure_images(session, evenly(images, _MEASURED))
        return {
            "wall_clock": record["speedup"]["wall_clock"],
            "efficiency": record["efficiency"],
            "measured_images": record["samples"],
        }
