"""Finding out before training, not after, what would make it fail."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from lgvit_edge._support.optional import require
from lgvit_edge.errors import DataError, TrainingError, UsageError
from lgvit_edge.model import LGViT, count_parameters
from lgvit_edge.training.data.datasets import Dataset

_SUFFIXES = (".pt", ".safetensors")
# The checkpoint, and twice (while it is replaced) the file to resume from: weights and two moments.
_COPIES = 1 + 2 * 3
_MARGIN = 20_000_000


def check_output(out: Path, model: LGViT) -> None:
    """Check that a checkpoint of ``model``, and what training needs beside it, can be written.

    Raises:
        UsageError: the suffix is not one of a checkpoint.
        TrainingError: the folder is missing, cannot be written to, or has too little room.
        MissingDependency: the package that writes ``.safetensors`` is missing.
    """
    if out.suffix not in _SUFFIXES:
        raise UsageError(f"--out must end in {' or '.join(_SUFFIXES)}, found {out.name!r}")
    if out.suffix == ".safetensors":
        require("safetensors.torch", extra="train")
    if out.is_dir():
        raise TrainingError(f"{out} is a folder, expected a file to write")
    folder = out.parent
    if not folder.is_dir():
        raise TrainingError(f"{folder}: no such folder; run: mkdir -p '{folder}'")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise TrainingError(f"cannot write to {folder}: {error.strerror}") from None
    needed = 4 * _COPIES * count_parameters(model) + _MARGIN
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise TrainingError(
            f"{folder}: training needs {needed / 1e6:.0f} MB of free disk, "
            f"found {free / 1e6:.0f} MB"
        )


def check_task(
    model: LGViT, train_set: Dataset, val_set: Dataset | None, stages: tuple[int, ...]
) -> None:
    """Check that a model and images go together.

    Raises:
        UsageError: the stages do not exist, or the model has nothing that they train.
        DataError: classes or sizes differ, or not one training image can be read.
    """
    if stages not in ((1,), (2,), (1, 2)):
        raise UsageError(f"stages must be (1,), (2,) or (1, 2), found {stages}")
    config = model.config
    if 2 in stages and not config.exits:
        raise UsageError("stage 2 trains exit heads: expected exits, found none")
    for dataset, what in ((train_set, "training"), (val_set, "validation")):
        if dataset is not None and len(dataset.classes) != config.num_classes:
            raise DataError(
                f"expected {config.num_classes} classes as the model has, found "
                f"{len(dataset.classes)} among the {what} images"
            )
    side = config.image_size
    for index in range(len(train_set)):
        try:
            shape = train_set.image(index, None).shape
        except DataError:
            continue
        if shape != (side, side, 3):
            raise DataError(f"expected images [{side}, {side}, 3], found {list(shape)}")
        return
    raise DataError(f"expected training images, found none of {len(train_set)} that can be read")
