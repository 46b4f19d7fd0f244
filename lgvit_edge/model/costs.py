"""Counts the MACs of a model as it is exported: of every segment and of the baseline."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lgvit_edge.model.lgvit import LGViT
from lgvit_edge.model.macs import count_macs
from lgvit_edge.model.segments import baseline, cut, example_input


@dataclass(frozen=True)
class ModelCosts:
    """Holds the MACs that a model needs for one image.

    Attributes:
        segments: of segments 0..M, their heads included.
        heads: of the M heads alone; the final classifier is the baseline's too.
        baseline: of the backbone without exits.
        baseline_without_products: the same without attention's two products, as in the paper.
    """

    segments: tuple[int, ...]
    heads: tuple[int, ...]
    baseline: int
    baseline_without_products: int


def model_costs(model: LGViT) -> ModelCosts:
    """Counts the MACs of each part of a model in eval mode."""
    config, segments, heads = model.config, [], []
    for segment in cut(model):
        segments.append(count_macs(segment.module, example_input(config, segment.index)))
        if segment.exit is not None:
            hidden = torch.zeros(1, *config.hidden_shape(segment.exit.block))
            heads.append(count_macs(segment.module.get_submodule("tail"), hidden))
    whole, image = baseline(model), example_input(config, None)
    return ModelCosts(
        tuple(segments),
        tuple(heads),
        count_macs(whole, image),
        count_macs(whole, image, attention=False),
    )
