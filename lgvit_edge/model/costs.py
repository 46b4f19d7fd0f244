"""What a model costs as it is shipped: the MACs of every segment and of the baseline."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lgvit_edge.model.lgvit import LGViT
from lgvit_edge.model.macs import count_macs
from lgvit_edge.model.segments import baseline, cut, example_input


@dataclass(frozen=True)
class ModelCosts:
    """MACs of one image.

    Attributes:
        segments: of segments 0..M, their heads included.
        heads: of the M heads alone; the final classifier is the baseline's too.
        baseline: of the backbone without exits.
        baseline_without_products: the same without attention's two products, as the paper counts.
    """

    segments: tuple[int, ...]
    heads: tuple[int, ...]
    baseline: int
    baseline_without_products: int


def model_costs(model: LGViT) -> ModelCosts:
    """Cut a model in eval mode and count what each part of it computes."""
    config, segments, heads = model.config, [], []
    for segment in cut(model):
        segments.append(count_macs(segment.module, example_input(config, segment.index)))
        if segment.exit is not None:
            tail = segment.module.tail
            assert isinstance(tail, nn.Module)
            hidden = torch.zeros(1, *config.hidden_shape(segment.exit.block))
            heads.append(count_macs(tail, hidden))
    whole, image = baseline(model), example_input(config, None)
    return ModelCosts(
        tuple(segments),
        tuple(heads),
        count_macs(whole, image),
        count_macs(whole, image, attention=False),
    )
