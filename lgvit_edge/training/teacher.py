"""A teacher: another model whose answers stage 1 imitates, on the same augmented images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lgvit_edge.errors import DataError, UsageError
from lgvit_edge.images.classes import numbered
from lgvit_edge.model import LGViT
from lgvit_edge.training.data.datasets import Dataset
from lgvit_edge.training.settings import TrainingConfig


@dataclass(frozen=True)
class Teacher:
    """A trained model, and the training images as it takes them."""

    model: LGViT  # its final classifier answers
    images: Dataset  # the pupil's images in the same order, of this model's size
    folder: Path | None = None  # keeps its answers; None: one beside the checkpoint, for a while


def taught(config: TrainingConfig) -> TrainingConfig:
    """Returns the settings with copies that repeat: a teacher answers each once.

    Where nothing else was asked for, every epoch has a copy of its own.
    """
    return config.replace(views=config.views or config.epochs[0])


def answering(config: TrainingConfig) -> TrainingConfig:
    """Returns the settings of a store of a teacher's answers, for pupils trained as ``taught``."""
    return config.replace(cache=True, cache_views=taught(config).views)


def check_teacher(teacher: Teacher, model: LGViT, images: Dataset, config: TrainingConfig) -> None:
    """Checks that a teacher knows what its pupil is to learn.

    Raises:
        UsageError: no loss would read its answers.
        DataError: classes or images differ.
    """
    if 1 not in config.stages:
        raise UsageError(
            "a teacher teaches stage 1, which is not run: expected --order joint, mixed or whole, "
            f"found {config.order}; leave the teacher out"
        )
    if not config.gamma:
        raise UsageError(
            "a teacher's share of the loss is --gamma: expected above 0, found 0; leave the "
            "teacher out"
        )
    theirs, ours = teacher.model.config, model.config
    if theirs.num_classes != ours.num_classes:
        raise DataError(
            f"expected a teacher of {ours.num_classes} classes as the model has, found one of "
            f"{theirs.num_classes}"
        )
    if theirs.labels and ours.labels and theirs.labels != ours.labels:
        raise DataError(
            "the teacher's classes are not the model's, or in another order: expected "
            f"{numbered(ours.labels)}, found {numbered(theirs.labels)}"
        )
    if not np.array_equal(teacher.images.labels, images.labels):
        raise DataError(
            f"expected the teacher's images to be the {len(images)} training images in the same "
            "order, found others"
        )
