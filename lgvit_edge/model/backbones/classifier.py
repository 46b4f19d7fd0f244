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


class MeanClassifier(nn.Module):
    """A norm and a linear layer on the mean of the tokens after the first ``prefix`` ones (Swin).

    ``pooled_norm`` takes the mean first and norms it; ``beside_token`` joins it to the first token.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        eps: float,
        prefix: int = 0,
        pooled_norm: bool = False,
        beside_token: bool = False,
    ) -> None:
        super().__init__()
        self.prefix, self.pooled_norm, self.beside_token = prefix, pooled_norm, beside_token
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.classifier = Classifier(2 * dim if beside_token else dim, num_classes)

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns the logits, ``[B, T, D] -> [B, C]``."""
        tokens = hidden if self.pooled_norm else self.norm(hidden)
        patches = tokens[:, self.prefix :] if self.prefix else tokens
        pooled = torch.mean(patches, dim=1, keepdim=True)
        if self.pooled_norm:
            pooled = self.norm(pooled)
        if self.beside_token:
            pooled = torch.cat([tokens[:, :1], pooled], dim=-1)
        logits: Tensor = self.classifier(pooled)
        return logits
