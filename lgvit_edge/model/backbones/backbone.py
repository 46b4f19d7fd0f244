"""The backbone: embedding, blocks 1..L, final classifier, by family."""

from __future__ import annotations

from torch import Tensor, nn

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.model.backbones import swin, vit
from lgvit_edge.model.backbones.classifier import MeanClassifier, TokenClassifier

FAMILIES = {"vit": vit, "deit": vit, "swin": swin}


class Backbone(nn.Module):
    """ViT, DeiT or Swin without exits."""

    def __init__(self, config: LGViTConfig) -> None:
        super().__init__()
        family = FAMILIES[config.family]
        self.embedding = family.Embedding(config)
        self.blocks = nn.ModuleList(family.block(sizes, config) for sizes in config.blocks)
        self.final = final_classifier(config, config.blocks[-1].dim)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Normalised ``[B, 3, H, W] float -> logits [B, C]``."""
        hidden: Tensor = self.embedding(pixel_values)
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.final(hidden)
        return logits


def final_classifier(config: LGViTConfig, dim: int) -> TokenClassifier | MeanClassifier:
    """Norm and classifier in the family's form, on hidden states of width ``dim``."""
    eps = config.layer_norm_eps
    if config.prefix_tokens:
        return TokenClassifier(dim, config.num_classes, config.classifiers, eps=eps)
    return MeanClassifier(dim, config.num_classes, eps=eps)
