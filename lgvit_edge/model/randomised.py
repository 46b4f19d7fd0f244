"""Fills models with random weights that look trained, for checks that need no training."""

from __future__ import annotations

import torch
from torch import nn

from lgvit_edge.model.lgvit import LGViT


@torch.no_grad()
def randomised(model: LGViT, seed: int = 0) -> LGViT:
    """Fills a model with random weights; fresh ones are near identities and hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.weight.normal_(0, module.weight[0].numel() ** -0.5, generator=generator)
            if module.bias is not None:
                module.bias.normal_(0, 0.2, generator=generator)
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.bias.normal_(0, 0.2, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    for name, parameter in model.backbone.named_parameters():
        if name in ("embedding.prefix", "embedding.position") or name.endswith(
            (".table", ".latent")
        ):
            parameter.normal_(0, 0.5, generator=generator)
        if name.endswith("attention.scale"):
            parameter.uniform_(5, 15, generator=generator)
    return model.eval()
