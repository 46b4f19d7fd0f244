"""Training an LGViT: data, the paper's losses, and the two stages.

Names are imported on first use: ``--help`` reads the settings where torch is not installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lgvit_edge.training.data.datasets import ArrayDataset, Dataset, ImageFolder
    from lgvit_edge.training.loop import train
    from lgvit_edge.training.run import train_from_folder
    from lgvit_edge.training.schemes import Scheme, register_scheme
    from lgvit_edge.training.settings import TrainingConfig
    from lgvit_edge.training.start import attach_exits

_HOMES = {
    "ArrayDataset": "data.datasets",
    "Dataset": "data.datasets",
    "ImageFolder": "data.datasets",
    "Scheme": "schemes",
    "TrainingConfig": "settings",
    "attach_exits": "start",
    "register_scheme": "schemes",
    "train": "loop",
    "train_from_folder": "run",
}
__all__ = [
    "ArrayDataset",
    "Dataset",
    "ImageFolder",
    "Scheme",
    "TrainingConfig",
    "attach_exits",
    "register_scheme",
    "train",
    "train_from_folder",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
