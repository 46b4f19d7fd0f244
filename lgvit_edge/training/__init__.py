"""Training an LGViT: data, the paper's losses, and the two stages."""

from lgvit_edge.training.data.datasets import ArrayDataset, Dataset, ImageFolder
from lgvit_edge.training.evaluate import accuracy_table, evaluate
from lgvit_edge.training.loop import train
from lgvit_edge.training.run import train_from_folder
from lgvit_edge.training.settings import TrainingConfig
from lgvit_edge.training.start import attach_exits

__all__ = [
    "ArrayDataset",
    "Dataset",
    "ImageFolder",
    "TrainingConfig",
    "accuracy_table",
    "attach_exits",
    "evaluate",
    "train",
    "train_from_folder",
]
