"""Counts the multiply-accumulates (MACs) of modules, and of whole models as they are exported.

One multiply-add = 1; attention's two matrix products are counted (the paper's 16.93 G for
ViT-B/16 leaves them out, 17.56 G has them). Norms, activations and softmax are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.model.backbones.backbone import parts
from lgvit_edge.model.lgvit import LGViT
from lgvit_edge.model.segments import baseline, cut, example_input

_PRODUCTS = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)  # layers are mm, addmm, convolution


def count_macs(module: nn.Module, example: torch.Tensor, *, attention: bool = True) -> int:
    """Returns the MACs of ``module(example)``, without computing it.

    ``attention`` tells whether products of two activations count, as in attention.
    """
    return _count(module, example)[0 if attention else 1]


def _count(module: nn.Module, example: torch.Tensor) -> tuple[int, int]:
    """Returns the MACs of ``module(example)``, and those without products of two activations."""
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad():
        counter = FlopCounterMode(display=False)
        with counter:
            module(fake.from_tensor(example))
    flops = counter.get_flop_counts().get("Global", {})
    products = sum(n for op, n in flops.items() if op in _PRODUCTS)
    return sum(flops.values()) // 2, (sum(flops.values()) - products) // 2


def block_macs(config: LGViTConfig) -> list[int]:
    """Returns the MACs of each of the L blocks, patch merging at the start of a stage included.

    All are whole; what is exported computes less of a last block that is read at few tokens.
    """
    counted: dict[object, int] = {}
    macs = []
    for number, sizes in enumerate(config.blocks, 1):
        shape = config.hidden_shape(number - 1)
        if (sizes, shape) not in counted:
            with torch.device("meta"):
                block = parts(config).block(sizes, config)
                counted[sizes, shape] = count_macs(block, torch.zeros(1, *shape))
        macs.append(counted[sizes, shape])
    return macs


@dataclass(frozen=True)
class ModelCosts:
    """Holds the MACs that a model needs for one image."""

    segments: tuple[int, ...]  # of segments 0..M, their heads included
    heads: tuple[int, ...]  # of the M heads alone; the final classifier is the baseline's too
    baseline: int  # of the backbone without exits, as it is exported
    published: int  # of the same with every block whole, as its authors count
    published_without_products: int  # without attention's two products, as in the paper


def model_costs(model: LGViT) -> ModelCosts:
    """Counts the MACs of each part of a model in eval mode."""
    config, segments, heads = model.config, [], []
    for segment in cut(model):
        segments.append(count_macs(segment.module, example_input(config, segment.index)))
        if segment.exit is not None:
            hidden = torch.zeros(1, *config.hidden_shape(segment.exit.block))
            heads.append(count_macs(segment.module.get_submodule("tail"), hidden))
    image = example_input(config, None, input="float32")
    return ModelCosts(
        tuple(segments),
        tuple(heads),
        count_macs(baseline(model, input="float32"), image),
        *_count(model.backbone, image),
    )
