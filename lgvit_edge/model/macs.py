"""Counts the multiply-accumulates (MACs) and parameters of modules.

One multiply-add = 1; attention's two matrix products are counted (the paper's 16.93 G for
ViT-B/16 leaves them out, 17.56 G has them). Norms, activations and softmax are not counted.
"""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.model.backbones.backbone import parts

_PRODUCTS = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)  # layers are mm, addmm, convolution


def count_macs(module: nn.Module, example: torch.Tensor, *, attention: bool = True) -> int:
    """Returns the MACs of ``module(example)``, without computing it.

    Args:
        module: a segment, a baseline, or a part of one.
        example: its input.
        attention: whether products of two activations count, as in attention.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad():
        counter = FlopCounterMode(display=False)
        with counter:
            module(fake.from_tensor(example))
    flops = counter.get_flop_counts().get("Global", {})
    return sum(n for op, n in flops.items() if attention or op not in _PRODUCTS) // 2


def count_parameters(module: nn.Module) -> int:
    """Returns how many trained numbers a module has; shared ones count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def block_macs(config: LGViTConfig) -> list[int]:
    """Returns the MACs of each of the L blocks, patch merging at the start of a stage included."""
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
