"""The PyTorch side: backbones, heads, checkpoints, and cutting a model into segments."""

from lgvit_edge.model.checkpoints.loading import (
    load_backbone,
    load_checkpoint,
    load_model,
    save_checkpoint,
)
from lgvit_edge.model.lgvit import LGViT
from lgvit_edge.model.macs import block_macs, count_macs, count_parameters
from lgvit_edge.model.segments import Segment, baseline, cut, example_input, head_macs

__all__ = [
    "LGViT",
    "Segment",
    "baseline",
    "block_macs",
    "count_macs",
    "count_parameters",
    "cut",
    "example_input",
    "head_macs",
    "load_backbone",
    "load_checkpoint",
    "load_model",
    "save_checkpoint",
]
