"""What studies share that train: how they begin, and what they keep from run to run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lgvit_edge._support import finite_json
from lgvit_edge._support.files import MAX_TEXT, read_bytes
from lgvit_edge._support.outputs import replacing, write_json
from lgvit_edge._support.terminal import errors, note
from lgvit_edge.errors import UsageError
from lgvit_edge.export.bundle import ExportOptions, export_bundle
from lgvit_edge.images.labelled import evenly
from lgvit_edge.model import LGViT
from lgvit_edge.policies import Policy
from lgvit_edge.policies.evaluate import Images
from lgvit_edge.training import TrainingConfig
from lgvit_edge.training.data.datasets import ImageFolder
from lgvit_edge.training.report import all_logits
from lgvit_edge.training.resume import weights_hash
from lgvit_edge.training.start import start_from_folder


def trained(
    data: Path,
    backbone: str,
    weights: Path | None,
    config: TrainingConfig,
    *,
    images: int | None,
    val_images: int | None,
    image_size: int | None = None,
) -> tuple[LGViT, ImageFolder, ImageFolder]:
    """Returns a trained backbone without exits, and so many training and validation images.

    Raises:
        UsageError: there are no validation images, or the backbone does not know the classes.
    """
    start = start_from_folder(
        data,
        backbone=backbone,
        weights=weights,
        config=config,
        console=errors,
        exits="none",
        image_size=image_size,
    )
    if start.val is None or not start.knows:
        raise UsageError(
            f"expected val/ beside train/ in {data}, and a backbone that knows its classes"
        )
    model = start.model.with_exits([])
    return model, some(start.images, images), some(start.val, val_images)


def some(folder: ImageFolder, count: int | None) -> ImageFolder:
    """Returns a part of the images, spread evenly."""
    places = list(evenly(range(len(folder)), count))
    part = copy.copy(folder)
    part.paths, part.labels = [folder.paths[i] for i in places], folder.labels[places]
    return part


def seeds_of(text: str) -> list[int]:
    """Returns the seeds that an option names, each once.

    Raises:
        UsageError: one is no whole number from 0.
    """
    parts = [part.strip() for part in text.split(",")]
    if wrong := [part for part in parts if not part.isdecimal()]:
        raise UsageError(f"--seeds: expected whole numbers such as 0,1,2; found {wrong[0]!r}")
    return list(dict.fromkeys(int(part) for part in parts))


def same_settings(described: Path, begun: LGViT, identity: dict[str, Any]) -> None:
    """Writes what results depend on, and checks that those that are there depend on the same.

    ``begun`` is the network that training begins with.

    Raises:
        UsageError: they do not.
    """
    identity = {**identity, "begun": begun.config.to_json(), "weights": weights_hash(begun)}
    identity = finite_json.loads(finite_json.dumps(identity))
    if described.is_file():
        then = finite_json.loads(read_bytes(described, MAX_TEXT))
        if then != identity:
            keys = (key for key in {**identity, **then} if identity.get(key) != then.get(key))
            place = described.with_suffix("")
            raise UsageError(
                f"{described} is of other settings ({', '.join(keys)}); give another folder: "
                f"--out, or: rm -f '{place}'.* '{place}'-*"
            )
    write_json(described, identity)


def kept_answers(
    stored: Path, checkpoint: Path | None, model: LGViT, val: ImageFolder, workers: int
) -> Images:
    """Returns the logits on validation images of the model in a checkpoint, as ``kept`` does."""
    return kept(stored, checkpoint, lambda: all_logits(model, val, 100, workers=workers, note=note))


def kept(stored: Path, checkpoint: Path | None, compute: Callable[[], Images]) -> Images:
    """Returns the logits in a file, written where it is missing or older than their checkpoint."""
    trained = 0
    if checkpoint is not None and checkpoint.is_file():
        trained = checkpoint.stat().st_mtime_ns
    if not stored.is_file() or stored.stat().st_mtime_ns < trained:
        found = compute()
        with replacing(stored) as partial, partial.open("wb") as file:
            np.savez(file, logits=found.logits, labels=found.labels)
    with np.load(stored) as arrays:
        return Images(arrays["logits"], arrays["labels"])


def kept_bundle(model: LGViT, bundle: Path, checkpoint: Path, policy: Policy) -> None:
    """Exports a model for the CPU, unless a newer bundle than its checkpoint has the policy."""
    manifest = bundle / "manifest.json"
    if manifest.is_file() and manifest.stat().st_mtime >= checkpoint.stat().st_mtime:
        if finite_json.loads(read_bytes(manifest, MAX_TEXT))["policy"] == policy.to_json():
            return
    bundle.parent.mkdir(exist_ok=True)
    export_bundle(model, bundle, ExportOptions(policy=policy))
