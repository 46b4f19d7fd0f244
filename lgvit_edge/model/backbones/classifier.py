"""From tokens to logits: what the final classifier and the exit heads end in.

Shapes: B images, T tokens, D width, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Classifier(nn.Module):
    """One linear classifier per classified token; their logits are averaged (DeiT)."""

    def __init__(self, dim: int, num_classes: int, count: int = 1) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(dim, num_classes) for _ in range(count))

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, count, D] -> [B, C]``."""
        if len(self.linears) == 1:
            only: Tensor = self.linears[0](tokens.flatten(1))
            return only
        first, second = (linear(tokens[:, i]) for i, linear in enumerate(self.linears))
        mean: Tensor = (first + second) * 0.5
        return mean


class TokenClassifier(nn.Module):
    """Norm and classifiers on the prefix tokens: ViT and DeiT."""

    def __init__(self, dim: int, num_classes: int, count: int, *, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.classifier = Classifier(dim, num_classes, count)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[B, T, D] -> [B, C]``. Only the classified tokens are normed: no other is read."""
        count = len(self.classifier.linears)
        logits: Tensor = self.classifier(self.norm(hidden[:, :count]))
        return logits


class MeanClassifier(nn.Module):
    """Norm, mean over all tokens and classifier: Swin, which has no class token."""

    def __init__(self, dim: int, num_classes: int, *, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.classifier = Classifier(dim, num_classes)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[B, T, D] -> [B, C]``."""
        logits: Tensor = self.classifier(torch.mean(self.norm(hidden), dim=1, keepdim=True))
        return logits
