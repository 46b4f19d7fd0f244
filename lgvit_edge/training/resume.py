"""Reads and writes the file from which an interrupted training continues."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lgvit_edge._support.files import require_file
from lgvit_edge._support.outputs import replacing
from lgvit_edge.bundle.codec import to_json
from lgvit_edge.errors import TrainingError
from lgvit_edge.model import LGViT
from lgvit_edge.training.data.datasets import Dataset
from lgvit_edge.training.report import Row
from lgvit_edge.training.settings import TrainingConfig

# 1: fingerprint, stage, epoch, step, model, aligners, optimizer. 2: history. 3: place for stage,
# and a list of models.
_VERSION = 3
_OURS = {"format": "lgvit-edge-resume", "version": _VERSION}


@dataclass(frozen=True)
class Progress:
    """The state of a training after an epoch, from which it can continue.

    No random generator's state is stored: every random choice follows from seed, stage, epoch and
    image. Of models, aligners and optimizer it holds the state dicts.
    """

    place: int  # of the stage in the order, from 0
    epoch: int  # epochs done in this stage
    step: int  # steps done in this stage, which is the schedule's position
    model: dict[str, Tensor]
    aligners: dict[str, Tensor]
    optimizer: dict[str, Any]
    history: list[Row]  # of all stages


def resume_path(out: Path) -> Path:
    """Returns the path of the resume file beside ``out``."""
    return out.with_name(out.name + ".resume")


def fingerprint(
    model: LGViT, dataset: Dataset, config: TrainingConfig, teacher: LGViT | None = None
) -> dict[str, str]:
    """Returns what must be the same for a training to continue, name by name."""
    values = {
        **config.identity(),
        **{f"model.{name}": value for name, value in to_json(model.config).items()},
        "training images": dataset.fingerprint(),
        "starting weights": weights_hash(model),
        "teacher": teacher and weights_hash(teacher),
    }
    return {name: repr(value) for name, value in values.items()}


def weights_hash(module: nn.Module) -> str:
    """Returns a hash of all names, parameters and buffers of a module."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()


def write_progress(path: Path, progress: Progress, identity: dict[str, str]) -> None:
    """Writes the resume file, whole or not at all; a failure is a ``TrainingError``."""
    content = {**_OURS, "fingerprint": identity, **vars(progress)}
    try:
        with replacing(path) as partial, partial.open("wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TrainingError(f"cannot write {path}: {reason}") from None


def read_progress(path: Path, identity: dict[str, str]) -> Progress | None:
    """Reads the resume file; None where there is none.

    Raises:
        TrainingError: the file is damaged, not ours, or of another training.
    """
    if not path.exists():
        return None
    try:
        require_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise TrainingError(
            f"{path} cannot be read ({reason}); delete it to start training again"
        ) from None
    if not isinstance(content, dict) or any(content.get(k) != v for k, v in _OURS.items()):
        raise TrainingError(
            f"{path}: expected version {_VERSION} of a file to resume from, found another file; "
            "delete or move it to start training again"
        )
    then, now = content["fingerprint"], identity
    changes = [
        f"{k} (other contents)"
        if k.endswith(("training images", "starting weights", "teacher"))
        else f"{k} (then {_brief(then.get(k))}, now {_brief(now.get(k))})"
        for k in sorted(then.keys() | now.keys())
        if then.get(k) != now.get(k)
    ]
    if changes:
        # A name without a commit means another model once its owner changed it.
        old = then.get("model.source", "''").strip("'")
        moved = old and "model.source" in (change.split()[0] for change in changes)
        again = f" with {old} as its checkpoint" if moved else ""
        raise TrainingError(
            f"{path} is of a training with other settings: {'; '.join(changes)}. Repeat that "
            f"training's command{again} to continue it, or start again without it: rm '{path}'"
        )
    return Progress(**{name: content[name] for name in Progress.__dataclass_fields__})


def _brief(value: str | None) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
