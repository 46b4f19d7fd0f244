"""Training an LGViT: data, the paper's losses, the two stages, and passes.

Names are imported on first use: ``--help`` reads the settings where torch is not installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lgvit_edge._support.lazy import lazily

if TYPE_CHECKING:
    from lgvit_edge.training.data.datasets import ArrayDataset, Dataset, ImageFolder
    from lgvit_edge.training.from_folder import passes_from_folder, train_from_folder
    from lgvit_edge.training.loop import train
    from lgvit_edge.training.passes import Passes, pass_sizes, train_passes
    from lgvit_edge.training.schemes import Scheme, register_scheme
    from lgvit_edge.training.settings import TrainingConfig
    from lgvit_edge.training.start import attach_exits
    from lgvit_edge.training.teacher import Teacher

__all__ = [
    "ArrayDataset",
    "Dataset",
    "ImageFolder",
    "Passes",
    "Scheme",
    "Teacher",
    "TrainingConfig",
    "attach_exits",
    "pass_sizes",
    "passes_from_folder",
    "register_scheme",
    "train",
    "train_from_folder",
    "train_passes",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "lgvit_edge.training.data.datasets": ("ArrayDataset", "Dataset", "ImageFolder"),
        "lgvit_edge.training.from_folder": ("passes_from_folder", "train_from_folder"),
        "lgvit_edge.training.loop": ("train",),
        "lgvit_edge.training.passes": ("Passes", "pass_sizes", "train_passes"),
        "lgvit_edge.training.schemes": ("Scheme", "register_scheme"),
        "lgvit_edge.training.settings": ("TrainingConfig",),
        "lgvit_edge.training.start": ("attach_exits",),
        "lgvit_edge.training.teacher": ("Teacher",),
    },
)
