"""Counting multiply-accumulates and parameters of what is shipped.

One multiply-add = 1; attention's two matrix products are counted (the paper's 16.93 G for
ViT-B/16 leaves them out, 17.56 G has them). Norms, activations and softmax are not counted.
"""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from lgvit_edge.config import LGViTConfig


def count_macs(module: nn.Module, example: torch.Tensor) -> int:
    """MACs of ``module(example)``, without computing it."""
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad():
        counter = FlopCounterMode(display=False)
        with counter:
            module(fake.from_tensor(example))
    return int(counter.get_total_flops()) // 2


def count_parameters(module: nn.Module) -> int:
    """Numbers learnt in training, each shared one once."""
    return sum(parameter.numel() for parameter in module.parameters())


def block_macs(config: LGViTConfig) -> list[int]:
    """MACs of each of the L blocks: ``T D (4 D + 2 I) + 2 T^2 D`` for MLP width I."""
    tokens, dim = config.grid**2 + config.prefix_tokens, config.hidden_size
    one = tokens * dim * (4 * dim + 2 * config.intermediate_size) + 2 * tokens**2 * dim
    return [one] * config.num_blocks
