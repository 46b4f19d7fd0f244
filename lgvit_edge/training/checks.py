"""Checks before a training starts what would make it fail later."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from lgvit_edge._support.files import locked
from lgvit_edge._support.optional import require
from lgvit_edge._support.outputs import check_file, check_folder, followed
from lgvit_edge.errors import DataError, TrainingError, UsageError
from lgvit_edge.images.classes import numbered
from lgvit_edge.model import LGViT, count_parameters
from lgvit_edge.training.data.datasets import Dataset
from lgvit_edge.training.losses import last_of_each
from lgvit_edge.training.report import log_path
from lgvit_edge.training.resume import resume_path
from lgvit_edge.training.schemes import SCHEMES
from lgvit_edge.training.settings import TrainingConfig
from lgvit_edge.training.team import Team

_SUFFIXES = (".pt", ".safetensors")
# Copies of the weights on disk: the checkpoint, and twice the resume file (with two moments).
_COPIES = 1 + 2 * 3
_MARGIN = 20_000_000


def check_place(out: Path, features: Path | None = None) -> None:
    """Checks before anything is read that a checkpoint, and a folder of features, can be written.

    Raises:
        UsageError: the suffix is not one of a checkpoint.
        TrainingError: a folder is missing or cannot be written to, or another thing is there.
        MissingDependency: the package that writes ``.safetensors`` is missing.
    """
    if out.suffix not in _SUFFIXES:
        raise UsageError(f"--out must end in {' or '.join(_SUFFIXES)}, found {out.name!r}")
    if out.suffix == ".safetensors":
        require("safetensors.torch", extra="train")
    try:
        for path in (out, resume_path(out), log_path(out)):
            check_file(path, streams=False)
        if features is not None:
            check_folder(features)
    except OSError as error:
        raise TrainingError(str(error.strerror)) from None


@contextlib.contextmanager
def alone(out: Path, features: Path | None, team: Team) -> Iterator[None]:
    """Does what ``check_place`` does, and keeps other trainings away from the same files.

    Raises:
        TrainingError: another one writes them. Others as ``check_place`` raises them.
    """
    with contextlib.ExitStack() as stack:
        if team.leads:
            check_place(out, features)
            try:
                stack.enter_context(locked(out.with_name(f".{out.name}.lock")))
            except BlockingIOError as holder:
                raise TrainingError(
                    f"another training ({holder}) writes {out}: wait for it, or name another file "
                    "with --out"
                ) from None
            except OSError as error:
                raise TrainingError(f"cannot write {out}: {error.strerror or error}") from None
        yield


def check_room(out: Path, model: LGViT) -> None:
    """Checks that the disk has room for a checkpoint of ``model``, and what training needs.

    Raises:
        TrainingError: it has not.
    """
    folder = followed(out).parent
    needed = 4 * _COPIES * count_parameters(model) + _MARGIN
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise TrainingError(
            f"{folder}: training needs {needed / 1e6:.0f} MB of free disk, "
            f"found {free / 1e6:.0f} MB"
        )


def check_team(team: Team, config: TrainingConfig, images: int, *, shared: bool) -> None:
    """Checks that several processes can train on ``images`` images together.

    ``shared`` tells whether features are stored in a folder.

    Raises:
        DataError: there are too few images for that many processes.
        UsageError: the settings do not fit that many processes.
    """
    if team.size > 1 and images < 2 * team.size:
        raise DataError(
            f"expected at least {2 * team.size} training images for {team.size} processes, found "
            f"{images}"
        )
    if team.size > config.batch_size // 2:
        raise UsageError(
            f"batch_size counts all processes together: expected at least {2 * team.size} for "
            f"{team.size} processes, found {config.batch_size}"
        )
    if team.size > 1 and config.cache and not shared:
        raise UsageError(
            f"--cache would hold all features in each of {team.size} processes; store them in a "
            "folder that they share: --cache-features DIR"
        )


def check_stages(models: Sequence[LGViT], features: Path | None, config: TrainingConfig) -> None:
    """Checks that the stages have something to train, and one folder of features is enough.

    Raises:
        UsageError: no model has exits for stage 2, or its backbone changes between two runs of it.
    """
    if 2 in config.stages and not any(model.config.exits for model in models):
        raise UsageError(
            "stage 2 trains exit heads: expected exits, found none; to train the model without "
            "exits: --order whole"
        )
    if features is not None and config.stages.count(2) > 1:
        raise UsageError(
            f"--order {config.order} runs stage 2 on two backbones, and --cache-features keeps the "
            "features of one: use --cache"
        )


def check_task(
    model: LGViT,
    train_set: Dataset,
    val_set: Dataset | None,
    config: TrainingConfig,
) -> None:
    """Checks that a model, images and settings go together.

    Raises:
        UsageError: the exits would not learn to answer.
        DataError: classes or sizes differ, or not one training image can be read.
    """
    by_features = 2 in config.stages and SCHEMES[config.scheme].features
    eq13 = model.config.exits and by_features and config.prediction_exits == "paper"
    if eq13 and not last_of_each(model.config.exits):
        kinds = ", ".join(sorted({exit.head for exit in model.config.exits}))
        raise UsageError(
            "--prediction-exits paper supervises the last local and the last global head, "
            f"and the exits have neither ({kinds}): none would learn answers; give "
            "--prediction-exits all, or --heads lgvit"
        )
    for dataset, what in ((train_set, "training"), (val_set, "validation")):
        if dataset is not None and len(dataset.classes) != model.config.num_classes:
            raise DataError(
                f"expected {model.config.num_classes} classes as the model has, found "
                f"{len(dataset.classes)} among the {what} images"
            )
        labels = model.config.labels
        if dataset is not None and labels and not _same(dataset.classes, labels):
            raise DataError(
                f"the {what} images' classes are not the model's, or in another order: expected "
                f"{numbered(labels)}, found {numbered(dataset.classes)}; give the model's to the "
                "images, such as ImageFolder(..., classes=model.config.labels)"
            )
    side = model.config.image_size
    for index in range(len(train_set)):
        try:
            shape = train_set.image(index, None).shape
        except DataError:
            continue
        if shape != (side, side, 3):
            raise DataError(f"expected images [{side}, {side}, 3], found {list(shape)}")
        return
    raise DataError(f"expected training images, found none of {len(train_set)} that can be read")


def _same(classes: Sequence[str], labels: tuple[str, ...]) -> bool:
    """Whether labels count through the model's classes; numbers in order are no names."""
    return tuple(classes) in (labels, tuple(map(str, range(len(labels)))))
