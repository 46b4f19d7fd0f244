"""The classifiers that turn tokens into logits, in exit heads and at the end.

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
        """Returns the logits, ``[B, count, D] -> [B, C]``."""
        if len(self.linears) == 1:
            logits: Tensor = self.linears[0](tokens.flatten(1))
            return logits
        first, second = (linear(tokens[:, i]) for i, linear in enumerate(self.linears))
        mean: Tensor = (first + second) * 0.5
        return mean


class TokenClassifier(nn.Module):
    """The classifier of ViT and DeiT: a norm and linear layers on the prefix tokens."""

    def __init__(self, dim: int, num_classes: int, count: int = 1, *, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.classifier = Classifier(dim, num_classes, count)

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns the logits, ``[B, T, D] -> [B, C]``; only the classified tokens are normed."""
        count = len(self.classifier.linears)
        logits: Tensor = self.classifier(self.norm(hidden[:, :count]))
        return logits


class MeanClassifier(TokenClassifier):
    """The classifier of Swin: a norm and a linear layer on the mean of all tokens."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns the logits, ``[B, T, D] -> [B, C]``."""
        logits: Tensor = self.classifier(torch.mean(self.norm(hidden), dim=1, keepdim=True))
        return logits
