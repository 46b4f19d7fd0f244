"""Finding out before training, not after, that its result could not be written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lgvit_edge._optional import require
from lgvit_edge.errors import TrainingError, UsageError
from lgvit_edge.model import LGViT, count_parameters

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
    probe = folder / f".{out.name}.{os.getpid()}.probe"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise TrainingError(f"cannot write to {folder}: {error.strerror}") from None
    needed = 4 * _COPIES * count_parameters(model) + _MARGIN
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise TrainingError(
            f"{folder}: training needs {needed / 1e6:.0f} MB of free disk, "
            f"found {free / 1e6:.0f} MB"
        )
