"""What exits, heads, schemes and placements are worth on a frozen backbone, as the paper's tables.

``python -m lgvit_edge.benchmarks.study --data DIR --weights vit_tiny.pth --out DIR`` trains the
heads of the paper and of its rivals on the same images for the same epochs, from features that are
computed once, and writes ``study.json``, ``study.md`` and ``study.png``. Thresholds are chosen on
one half of the validation images and reported on the other. What is there already is not trained
again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from lgvit_edge._files import replacing, write_json
from lgvit_edge._terminal import progress_bar, say
from lgvit_edge.arguments import Commands, exit_status
from lgvit_edge.benchmarks.environment import environment
from lgvit_edge.benchmarks.measure import command_line, measure_images
from lgvit_edge.benchmarks.study_tables import (
    Case,
    Measured,
    choose,
    curve,
    draw,
    on,
    tables,
)
from lgvit_edge.errors import DataError, UsageError
from lgvit_edge.export.exporter import ExportOptions, export_bundle
from lgvit_edge.labelled import LabelledImage, evenly
from lgvit_edge.model import (
    LGViT,
    baseline,
    block_macs,
    count_macs,
    count_parameters,
    cut,
    example_input,
    load_model,
)
from lgvit_edge.placement import plan_exits
from lgvit_edge.policy import from_json
from lgvit_edge.runtime import Session
from lgvit_edge.training import TrainingConfig, train
from lgvit_edge.training.batches import Batches
from lgvit_edge.training.data import ImageFolder
from lgvit_edge.training.start import attach_exits, load_start
from lgvit_edge.training.store import FeatureStore

# Found by trying: at the higher rate an encoder block as a head learns nothing.
RATE, RATES = 4e-3, {"encoder": 1e-3}
SPEED_UP, DROP = 1.6, 0.02  # of MACs, at which methods are compared; accuracy given up, likewise
_MEASURED = 500  # images of the reporting half on which wall clock is measured
EXITS = "uniform:8"
# Table 1: what the rivals attach where, how they train it, and when they stop. A frozen backbone
# has no loss of its own, so alternating with it (BERxiT) is plain training; and heads that share
# nothing learn the same whatever their losses weigh, but for clipping.
METHODS = (
    Case("LGViT", "lgvit", EXITS, "lgvit", "confidence"),
    Case("SDN", "mlp", EXITS, "weighted", "confidence"),
    Case("PABEE", "mlp", EXITS, "normal", "patience"),
    Case("PCEE", "mlp", EXITS, "normal", "patient_confidence"),
    Case("BERxiT", "mlp", EXITS, "alternating", "confidence"),
    Case("ViT-EE", "encoder", "6", "normal", "confidence"),
)
HEADS = (
    Case("MLP", "mlp", EXITS, "lgvit", "confidence"),
    Case("Conv", "conv", EXITS, "lgvit", "confidence"),
    Case("Attention", "attention", EXITS, "lgvit", "confidence"),
    Case("LPH and GAH", "lgvit", EXITS, "lgvit", "confidence"),
)
SCHEMES = (
    Case("normal", "lgvit", EXITS, "normal", "confidence"),
    Case("distillation", "lgvit", EXITS, "distillation", "confidence"),
    Case("alternating", "lgvit", EXITS, "alternating", "confidence"),
    Case("the paper's", "lgvit", EXITS, "lgvit", "confidence"),
)
KL = (
    Case("averaged over images", "mlp", EXITS, "lgvit", "confidence"),
    Case("over classes as well, as the authors do", "mlp", EXITS, "lgvit", "confidence", "class"),
)
PLACEMENTS = tuple(
    Case(name, "lgvit", f"{name}:4", "lgvit", "confidence")
    for name in ("shallow", "middle", "deep", "uniform")
)
TABLES = {
    "1": ("Methods (Table 1)", METHODS),
    "3": ("Heads, the paper's scheme (Table 3)", HEADS),
    "4": ("Schemes, the paper's heads (Table 4)", SCHEMES),
    "7": ("Placements of four exits (Table 7)", PLACEMENTS),
    "kl": ("The KL term of Eq. 14, MLP heads", KL),
}


@dataclass(frozen=True)
class Study:
    """What is the same for all trainings.

    Attributes:
        backbone: frozen, without exits.
        train: images to learn from.
        val: images of which one half tunes and the other reports.
        config: settings, the scheme aside.
        out: results and everything that takes time, kept.
    """

    backbone: LGViT
    train: ImageFolder
    val: ImageFolder
    config: TrainingConfig
    out: Path

    def model(self, case: Case) -> LGViT:
        """The case's heads, trained unless they are there.

        Raises:
            UsageError: they are there, but of a study with other settings.
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
        """Run the backbone once for the exits of all cases."""
        blocks = {exit.block for case in cases for exit in self._fresh(case).config.exits}
        val = self._val_features(self.backbone, blocks)
        for store in (self._store("features", self.backbone, self.train, self.config, blocks), val):
            say(f"features of {store.images} images take {store.bytes / 1e9:.1f} GB")
            with progress_bar("frozen blocks") as shown:
                store.fill(shown)
        if val.unreadable:  # halves would no longer be those that wall clock is measured on
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
        """Logits of all exits on the validation images, from stored features."""
        store = self._val_features(model, set())
        store.attach()
        logits, labels = [], []
        for states in store.ordered(100):
            exits = [head(x) for head, x in zip(model.heads, states.exits, strict=True)]
            logits.append(torch.stack([*exits, states.teacher], dim=1).numpy())
            labels.append(states.labels.numpy())
        config = model.config
        macs = [count_macs(s.module, example_input(config, s.index)) for s in cut(model)]
        return Measured(
            np.concatenate(logits),
            np.concatenate(labels),
            np.cumsum(macs),
            count_macs(baseline(model), example_input(config, None)),
            np.array([*(exit.block for exit in config.exits), config.num_blocks]),
        )

    def row(self, case: Case) -> dict[str, Any]:
        """A row of a table."""
        model = self.model(case)
        found = self.measured(model)
        tuning, reporting = found.half(0), found.half(1)
        fast = choose(case.policy, tuning, speed_up=SPEED_UP)
        sure = choose(case.policy, tuning, drop=DROP)
        at_speedup = fast and on(fast, reporting)
        if at_speedup:
            at_speedup |= self._wall_clock(case, model, at_speedup["policy"])
        return {
            "baseline": {"accuracy_all": found.accuracies[-1], "macs": found.baseline},
            "curve": curve(case.policy, reporting),
            "parameters": count_parameters(model),
            "blocks": found.blocks.tolist(),
            "accuracies": reporting.accuracies,
            "at_speedup": at_speedup,
            "at_accuracy": sure and on(sure, reporting),
        }

    def _wall_clock(self, case: Case, model: LGViT, policy: dict[str, Any]) -> dict[str, Any]:
        """Of the exported chain on some of the reporting images."""
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


def main(
    data: Annotated[Path, typer.Option(help="train/ and val/, a sub-folder per class.")],
    out: Annotated[Path, typer.Option(help="Folder for results, checkpoints, features.")],
    weights: Annotated[Path | None, typer.Option(help="Of the trained backbone.")] = None,
    backbone: Annotated[
        str, typer.Option(help="Its architecture, or a checkpoint's path.")
    ] = "vit-tiny",
    epochs: Annotated[int, typer.Option(min=1, help="Of every training.")] = 5,
    only: Annotated[str, typer.Option(help="Tables by number, as 1,3,4,7,kl.")] = "1,3,4,7,kl",
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "bf16",
) -> None:
    """Train the paper's heads and its rivals' on one frozen backbone; write tables and curves."""
    wanted = only.split(",")
    if unknown := set(wanted) - set(TABLES):
        raise UsageError(f"--only: expected some of {', '.join(TABLES)}; found {unknown.pop()!r}")
    chosen = {TABLES[name][0]: TABLES[name][1] for name in wanted}
    if weights is None and not Path(backbone).exists():
        raise UsageError(
            "heads learn on a trained backbone: expected --weights or a checkpoint as --backbone"
        )
    out.mkdir(parents=True, exist_ok=True)
    # Crops of at least a quarter leave training images about as hard for this backbone as new ones.
    config = TrainingConfig(
        epochs=(epochs, epochs), cache_views=1, min_crop=0.25, precision=precision
    )
    start = load_start(backbone, weights, num_classes=0, seed=config.seed).eval()
    size, spec = start.config.image_size, start.config.preprocess
    images = ImageFolder(
        data / "train", size=size, preprocess=spec, min_crop=config.min_crop, flip=config.flip
    )
    val = ImageFolder(data / "val", size=size, preprocess=spec, classes=images.classes)
    study = Study(start, images, val, config, out)
    study.keep_features([case for cases in chosen.values() for case in cases])
    record = _record(study, chosen)
    write_json(out / "study.json", record)
    with replacing(out / "study.md") as partial:
        partial.write_text(tables(record), encoding="utf-8")
    draw(record, out / "study.png")
    say(f"wrote {out / 'study.json'}, study.md, study.png")


def _record(study: Study, chosen: dict[str, tuple[Case, ...]]) -> dict[str, Any]:
    rows: dict[str, list[dict[str, Any]]] = {}
    known: dict[tuple[str, str], dict[str, Any]] = {}  # some stand in several tables
    for title, cases in chosen.items():
        rows[title] = []
        for case in cases:
            say(f"{title}: {case.name}")
            key = (case.training, case.policy)
            known[key] = known.get(key) or study.row(case)
            rows[title].append({**dataclasses.asdict(case), **known[key]})
    first = next(iter(rows.values()))
    curves = {row["name"]: row["curve"] for row in first}
    base = {
        "accuracy": first[0]["accuracies"][-1],
        "parameters": count_parameters(study.backbone),
        **first[0]["baseline"],
    }
    for row in [row for table in rows.values() for row in table]:
        del row["curve"], row["baseline"]
    half = len(study.val) // 2
    return {
        "baseline": base,
        "conditions": {
            "training": {
                name: value
                for name, value in study.config.identity().items()
                if name not in ("lr", "scheme", "kl", "cache")
            },
            "learning_rates": {"others": RATE, **RATES},
            "training_images": len(study.train),
            "tuning": len(study.val) - half,
            "reporting": half,
            "speed_up": SPEED_UP,
            "drop": DROP,
        },
        "tables": rows,
        "curves": curves,
        "env": environment(),
        "command": command_line(),
    }


if __name__ == "__main__":
    app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)
    app.command()(main)
    with exit_status():
        app()
