"""Runs one training of the study: its heads, its logits, and its row of a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lgvit_edge._support.files import write_json
from lgvit_edge._support.terminal import progress_bar, say
from lgvit_edge.architecture.placement import plan_exits
from lgvit_edge.benchmarks.experiments.study_tables import Case, Measured, choose, curve
from lgvit_edge.benchmarks.measure import measure_images
from lgvit_edge.errors import DataError, UsageError
from lgvit_edge.export.bundle import ExportOptions, export_bundle
from lgvit_edge.images.labelled import LabelledImage, evenly
from lgvit_edge.model import LGViT, block_macs, count_parameters, load_model
from lgvit_edge.policies import from_json
from lgvit_edge.policies.evaluate import Images
from lgvit_edge.runtime import Session
from lgvit_edge.training import TrainingConfig, train
from lgvit_edge.training.data.batches import Batches
from lgvit_edge.training.data.datasets import ImageFolder
from lgvit_edge.training.features import FeatureStore
from lgvit_edge.training.report import exit_costs
from lgvit_edge.training.start import attach_exits

# Learning rates, by trial: at the higher one an encoder block as a head learns nothing.
RATE, RATES = 4e-3, {"encoder": 1e-3}
SPEED_UP, DROP = (
    1.6,
    0.02,
)  # methods are compared at this MACs speed-up, and at this loss of accuracy
_MEASURED = 500  # images of the reporting half on which wall clock is measured


@dataclass(frozen=True)
class Study:
    """Settings and images that all trainings share.

    Attributes:
        backbone: frozen, without exits.
        train: images to learn from.
        val: images of which one half tunes and the other reports.
        config: settings, apart from the scheme.
        out: folder of results, checkpoints and features.
    """

    backbone: LGViT
    train: ImageFolder
    val: ImageFolder
    config: TrainingConfig
    out: Path

    def model(self, case: Case) -> LGViT:
        """Returns the model with the case's heads, trained unless its checkpoint exists.

        Raises:
            UsageError: the checkpoint is of a study with other settings.
        """
        checkpoint = self.out / f"{case.training}.pt"
        rate = RATES.get(case.heads, RATE)
        config = self.config.replace(scheme=case.learned_by, kl=case.kl, lr=(rate, rate))
        settings = self.out / f"{case.training}.json"
        if checkpoint.is_file():
            then = json.loads(settings.read_text()) if settings.is_file() else None
            if then != config.identity():
                raise UsageError(
                    f"{checkpoint} was trained with other settings ({then}); give another folder: "
                    "--out"
                )
            return load_model(checkpoint)
        say(f"training {case.training}")
        write_json(settings, config.identity())
        return train(
            self._fresh(case),
            self.train,
            None,
            config,
            stages=(2,),
            out=checkpoint,
            features=self.out / "features",
        )

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
        tuning, reporting = measured.half(0), measured.half(1)
        fast = choose(case.policy, tuning, speed_up=SPEED_UP)
        sure = choose(case.policy, tuning, drop=DROP)
        at_speedup = fast and reporting.gives(fast).to_json()
        if at_speedup:
            at_speedup |= self._wall_clock(case, model, at_speedup["policy"])
        return {
            "baseline": {
                "accuracy_all": measured.images.baseline_accuracy,
                "macs": measured.costs.baseline_macs,
            },
            "curve": curve(case.policy, reporting),
            "parameters": count_parameters(model),
            "blocks": list(measured.costs.blocks),
            "accuracies": reporting.images.accuracies,
            "at_speedup": at_speedup,
            "at_accuracy": sure and reporting.gives(sure).to_json(),
        }

    def _wall_clock(self, case: Case, model: LGViT, policy: dict[str, Any]) -> dict[str, Any]:
        """Measures the exported chain on some of the reporting images."""
        bundle, checkpoint = self.out / "bundles" / case.training, self.out / f"{case.training}.pt"
        manifest = bundle / "manifest.json"
        if not manifest.is_file() or manifest.stat().st_mtime < checkpoint.stat().st_mtime:
            bundle.parent.mkdir(exist_ok=True)
            export_bundle(model, bundle, ExportOptions())
        pairs = zip(self.val.paths, self.val.labels, strict=True)
        images = [LabelledImage(path, int(label)) for path, label in pairs][1::2]
        with Session.open(bundle) as session:
            session.policy = from_json(policy)
            record = measure_images(session, evenly(images, _MEASURED))
        return {
            "wall_clock": record["speedup"]["wall_clock"],
            "efficiency": record["efficiency"],
            "measured_images": record["samples"],
        }
