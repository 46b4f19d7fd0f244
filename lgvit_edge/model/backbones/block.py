"""The encoder block that all families share, written so that its export graph is clean.

LayerNormalization, Softmax and GELU stay single operators, the query is scaled before the product
(TensorRT fuses attention only then), and no shape depends on data.

Shapes: B images, T tokens (prefix tokens included), D width.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lgvit_edge._support.optional import resolve
from lgvit_edge.architecture.sizes import ACTIVATIONS, BlockConfig


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Splits the width into attention heads, ``[B, T, D] -> [B, heads, T, D / heads]``."""
    _, tokens, dim = x.shape
    return x.reshape(-1, tokens, heads, dim // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Joins attention heads to one width, ``[B, heads, T, d] -> [B, T, heads * d]``."""
    _, heads, tokens, dim = x.shape
    return x.transpose(1, 2).reshape(-1, tokens, heads * dim)


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Returns a linear layer with these weights."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias)
    return layer


class QuickGELU(nn.Module):
    """Computes ``x * sigmoid(1.702 x)``, OpenAI's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the activated values, in the shape of ``x``."""
        return x * torch.sigmoid(1.702 * x)


def tanh_gelu() -> nn.Module:
    """Returns GELU in its approximation by tanh."""
    return nn.GELU(approximate="tanh")


class Attention(nn.Module):
    """Multi-head self-attention (paper Eq. 4) over ``[B, T, D]``.

    With ``norm_eps``, each head norms its queries and keys first. ``rotation`` turns them by their
    positions, ``[B, heads, T, D / heads]`` to the same shape. ``bias`` returns what is added to the
    scores, ``[heads, T, T]``. ``norm`` norms the attended values
    ``[B, T, D]`` before the last layer.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        qkv_bias: bool,
        norm_eps: float | None = None,
        rotation: nn.Module | None = None,
        bias: nn.Module | None = None,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        layers = (nn.Linear(dim, dim, bias=qkv_bias) for _ in range(3))
        self.query, self.key, self.value = layers
        self.query_norm = None if norm_eps is None else nn.LayerNorm(dim // heads, eps=norm_eps)
        self.key_norm = None if norm_eps is None else nn.LayerNorm(dim // heads, eps=norm_eps)
        self.rotation, self.relative_bias = rotation, bias
        self.softmax = nn.Softmax(dim=-1)
        self.norm = norm
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the attended tokens, ``[B, T, D] -> [B, T, D]``."""
        return self.mix(self.scores(x), x)

    def mix(self, scores: Tensor, x: Tensor) -> Tensor:
        """Returns tokens mixed by scores, ``[B, heads, Q, T], [B, T, D] -> [B, Q, D]``."""
        v = split_heads(self.value(x), self.heads)
        attended = merge_heads(self.softmax(scores) @ v)
        if self.norm is not None:
            attended = self.norm(attended)
        mixed: Tensor = self.proj(attended)
        return mixed

    def queries(self, x: Tensor) -> Tensor:
        """Returns the projected queries, ``[B, T, D] -> [B, Q, D]``."""
        queries: Tensor = self.query(x)
        return queries

    def scores(self, x: Tensor) -> Tensor:
        """Returns the scores before the softmax, ``[B, T, D] -> [B, heads, Q, T]``."""
        scale = (x.shape[-1] // self.heads) ** -0.5
        q, k = (split_heads(f(x), self.heads) for f in (self.queries, self.key))
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if self.rotation is not None:
            q, k = self.rotation(q), self.rotation(k)
        scores: Tensor = (q * scale) @ k.transpose(-2, -1)
        return scores if self.relative_bias is None else scores + self.relative_bias()

    def deployed(self) -> nn.Module:
        """Returns the module as it is exported: tables of positions are constants."""
        attention = copy.copy(self)
        tables = {"rotation": self.rotation, "relative_bias": self.relative_bias}
        attention._modules = self._modules | {
            name: module.deployed()  # type: ignore[operator]
            for name, module in tables.items()
            if module is not None
        }
        return attention


def per_head(weight: Tensor, heads: int) -> Tensor:
    """Returns each head's projection of a row, ``[D, D] -> [heads, D, D / heads]``."""
    dim = len(weight)
    return weight.reshape(heads, dim // heads, dim).transpose(1, 2).contiguous()


def after_value(attention: Attention) -> nn.Linear:
    """Returns the output projection with the value's bias folded in, as weights add up to 1."""
    proj = attention.proj
    bias: Tensor | None = attention.value.bias
    return proj if bias is None else linear(proj.weight, proj.bias + proj.weight @ bias)


class Block(nn.Module):
    """One pre-norm encoder block over ``[B, T, D]``; in a Swin, patch merging may come first."""

    def __init__(
        self,
        config: BlockConfig,
        attention: nn.Module,
        *,
        eps: float,
        merge: nn.Module | None = None,
        activation: str = "gelu",
        gated: bool = False,
        mlp_norm: bool = False,
    ) -> None:
        super().__init__()
        dim, width = config.dim, config.intermediate_size
        self.merge = merge
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attention = attention
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.fc1 = nn.Linear(dim, width)
        self.gate = nn.Linear(dim, width) if gated else None
        self.activation = resolve(ACTIVATIONS[activation][0])()
        self.mlp_norm = nn.LayerNorm(width, eps=eps) if mlp_norm else None
        self.fc2 = nn.Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``[B, T, D]`` for ``[B, T, D]``; with patch merging, for ``[B, 4T, D/2]``."""
        if self.merge is not None:
            x = self.merge(x)
        attended: Tensor = self.attention(self.norm1(x))
        x = x + attended
        return x + self.mlp(self.norm2(x))

    def mlp(self, x: Tensor) -> Tensor:
        """Returns what the block's MLP makes of normed tokens, ``[B, T, D] -> [B, T, D]``."""
        if self.gate is None:
            inner = self.activation(self.fc1(x))
        else:
            inner = self.activation(self.gate(x)) * self.fc1(x)
        if self.mlp_norm is not None:
            inner = self.mlp_norm(inner)
        mixed: Tensor = self.fc2(inner)
        return mixed

    def deployed(self) -> Block:
        """Returns the block as it is exported: it computes the same and shares these parameters."""
        attention = self.attention.deployed()  # type: ignore[operator]
        block = copy.copy(self)
        block._modules = {**self._modules, "attention": attention}
        return block
