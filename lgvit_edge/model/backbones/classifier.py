"""The classifiers that turn tokens into logits, in exit heads and at the end.

Shapes: B images, T tokens, D width, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lgvit_edge.architecture.sizes import BlockConfig
from lgvit_edge.model.backbones.block import Attention, Block


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

    ``final_norm`` says what is normed, of ``FINAL_NORMS``; ``beside_token`` joins the mean to the
    first token.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        eps: float,
        prefix: int = 0,
        final_norm: str = "tokens",
        beside_token: bool = False,
    ) -> None:
        super().__init__()
        self.prefix, self.final_norm, self.beside_token = prefix, final_norm, beside_token
        self.norm = nn.LayerNorm(dim, eps=eps) if final_norm else nn.Identity()
        self.classifier = Classifier(2 * dim if beside_token else dim, num_classes)

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns the logits, ``[B, T, D] -> [B, C]``."""
        tokens = self.norm(hidden) if self.final_norm == "tokens" else hidden
        patches = tokens[:, self.prefix :] if self.prefix else tokens
        pooled = torch.mean(patches, dim=1, keepdim=True)
        if self.final_norm == "pooled":
            pooled = self.norm(pooled)
        if self.beside_token:
            pooled = torch.cat([tokens[:, :1], pooled], dim=-1)
        logits: Tensor = self.classifier(pooled)
        return logits


class LatentAttention(Attention):
    """Attention of one learnt query to all tokens, ``[B, T, D] -> [B, 1, D]``."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads, qkv_bias=True)
        self.latent = nn.Parameter(torch.zeros(1, 1, dim))
        nn.init.trunc_normal_(self.latent, std=dim**-0.5)

    def queries(self, x: Tensor) -> Tensor:
        """Returns the projected query, ``[1, 1, D]``; it does not depend on the tokens."""
        query: Tensor = self.query(self.latent)
        return query


class _PoolingBlock(Block):
    """A block whose attention pools: nothing is added to what it returns."""

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.attention(self.norm1(x))
        return pooled + self.mlp(self.norm2(pooled))


class AttentionClassifier(nn.Module):
    """A norm, a block in which a learnt query gathers from the patches, a linear layer (SigLIP)."""

    def __init__(
        self, sizes: BlockConfig, num_classes: int, *, eps: float, activation: str, prefix: int
    ) -> None:
        super().__init__()
        self.prefix = prefix
        attention = LatentAttention(sizes.dim, sizes.num_heads)
        self.pool = _PoolingBlock(sizes, attention, eps=eps, activation=activation)
        self.classifier = Classifier(sizes.dim, num_classes)

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns the logits, ``[B, T, D] -> [B, C]``."""
        patches = hidden[:, self.prefix :] if self.prefix else hidden
        logits: Tensor = self.classifier(self.pool(patches))
        return logits
