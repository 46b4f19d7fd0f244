"""PyTorch models: backbones, exit heads, checkpoints, and cutting a model into segments."""

from lgvit_edge.model.checkpoints.loading import (
    load_backbone,
    load_checkpoint,
    load_model,
    save_checkpoint,
)
from lgvit_edge.model.lgvit import LGViT
from lgvit_edge.model.macs import ModelCosts, block_macs, count_macs, model_costs
from lgvit_edge.model.segments import Segment, baseline, count_parameters, cut, example_input

__all__ = [
    "LGViT",
    "ModelCosts",
    "Segment",
    "baseline",
    "block_macs",
    "count_macs",
    "count_parameters",
    "cut",
    "example_input",
    "load_backbone",
    "load_checkpoint",
    "load_model",
    "model_costs",
    "save_checkpoint",
]
