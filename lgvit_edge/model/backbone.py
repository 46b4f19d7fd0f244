"""ViT and DeiT backbones, written so that their export graphs are clean.

LayerNormalization, Softmax and GELU stay single operators, the query is scaled before the product
(TensorRT fuses attention only then), and no shape depends on data.

Shapes: B images, N = (H / P)^2 patch tokens, T = N + prefix tokens, D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lgvit_edge.config import LGViTConfig


class Attention(nn.Module):
    """Multi-head self-attention (paper Eq. 4) over ``[B, T, D]``."""

    def __init__(self, dim: int, heads: int, *, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim, bias=qkv_bias)
        self.key = nn.Linear(dim, dim, bias=qkv_bias)
        self.value = nn.Linear(dim, dim, bias=qkv_bias)
        self.softmax = nn.Softmax(dim=-1)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, D] -> [B, T, D]``."""
        scale = (x.shape[-1] // self.heads) ** -0.5
        q, k, v = (split_heads(f(x), self.heads) for f in (self.query, self.key, self.value))
        scores = (q * scale) @ k.transpose(-2, -1)
        mixed: Tensor = self.proj(merge_heads(self.softmax(scores) @ v))
        return mixed


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``[B, T, D] -> [B, heads, T, D / heads]``."""
    _, tokens, dim = x.shape
    return x.reshape(-1, tokens, heads, dim // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """``[B, heads, T, d] -> [B, T, heads * d]``."""
    _, heads, tokens, dim = x.shape
    return x.transpose(1, 2).reshape(-1, tokens, heads * dim)


class Block(nn.Module):
    """One pre-norm encoder block over ``[B, T, D]``."""

    def __init__(self, config: LGViTConfig) -> None:
        super().__init__()
        dim = config.hidden_size
        self.norm1 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.attention = Attention(dim, config.num_heads, qkv_bias=config.qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(dim, config.intermediate_size)
        self.gelu = nn.GELU()
        self.fc2 = nn.Linear(config.intermediate_size, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, D] -> [B, T, D]``."""
        attended: Tensor = self.attention(self.norm1(x))
        x = x + attended
        mlp: Tensor = self.fc2(self.gelu(self.fc1(self.norm2(x))))
        return x + mlp


class Embedding(nn.Module):
    """Patch embedding, prefix tokens and position embeddings."""

    def __init__(self, config: LGViTConfig) -> None:
        super().__init__()
        dim, patch, prefix = config.hidden_size, config.patch_size, config.prefix_tokens
        self.patch = nn.Conv2d(3, dim, kernel_size=patch, stride=patch)
        self.prefix = nn.Parameter(torch.zeros(1, prefix, dim))
        self.position = nn.Parameter(torch.zeros(1, config.grid**2 + prefix, dim))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Normalised ``[B, 3, H, W] float -> [B, T, D]``."""
        return self.assemble(self.patch(pixel_values).flatten(2).transpose(1, 2))

    def assemble(self, patches: Tensor) -> Tensor:
        """Prefix tokens and positions around embedded patches, ``[B, N, D] -> [B, T, D]``."""
        prefix = self.prefix.expand(patches.shape[0], -1, -1)
        return torch.cat([prefix, patches], dim=1) + self.position


class Classifier(nn.Module):
    """One linear classifier per classified prefix token; their logits are averaged (DeiT)."""

    def __init__(self, dim: int, num_classes: int, count: int) -> None:
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


class FinalClassifier(nn.Module):
    """Final norm and classifier, exit M + 1."""

    def __init__(self, config: LGViTConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.classifier = Classifier(config.hidden_size, config.num_classes, config.classifiers)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[B, T, D] -> [B, C]``. Only the classified tokens are normed: no other is read."""
        count = len(self.classifier.linears)
        logits: Tensor = self.classifier(self.norm(hidden[:, :count]))
        return logits


class Backbone(nn.Module):
    """ViT or DeiT: embedding, L blocks, final classifier."""

    def __init__(self, config: LGViTConfig) -> None:
        super().__init__()
        self.embedding = Embedding(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.final = FinalClassifier(config)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Normalised ``[B, 3, H, W] float -> logits [B, C]``."""
        hidden: Tensor = self.embedding(pixel_values)
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.final(hidden)
        return logits
