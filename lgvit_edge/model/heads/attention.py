"""The attention head: full multi-head self-attention over the patch tokens (paper Table 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.model.backbones.block import Attention, after_value, linear, per_head
from lgvit_edge.model.heads.base import ExitHead, Names, body_head


class _SelfAttention(Attention):
    """Computes features by self-attention (Eq. 4) over the patch tokens, no residual."""

    residual = False
    authors: Names = {
        **{part: f"mlp.attention.{part}" for part in ("query", "key", "value")},
        "proj": "mlp.output.dense",
    }

    def features(self, patches: Tensor) -> Tensor:
        return self.forward(patches)

    def pooled(self, prefix: int) -> nn.Module:
        return MeanAttention(self, prefix)

    def folded(self) -> nn.Module:
        return self


class MeanAttention(nn.Module):
    """Computes the mean over tokens of self-attention, ``[B, prefix + N, D] -> [B, 1, D]``.

    The mean over queries is taken on the attention weights. With w_h [N] those of head h, the mean
    is the projection of ``w_h X W_h`` over heads: the tokens X are weighted first, so that the
    value projection W_h sees one row per head. A GAH has few tokens, so operators cost more than
    arithmetic: query and key are one product.
    """

    @torch.no_grad()
    def __init__(self, attention: Attention, prefix: int = 0) -> None:
        super().__init__()
        self.prefix, self.heads, dim = prefix, attention.heads, attention.query.in_features
        scale = (dim // self.heads) ** -0.5
        query, key = attention.query, attention.key
        bias: Tensor | None = query.bias
        if bias is not None:
            bias = torch.cat([bias * scale, key.bias])
        self.query_key = linear(torch.cat([query.weight * scale, key.weight]), bias)
        self.values = nn.Parameter(per_head(attention.value.weight, self.heads))
        self.softmax = nn.Softmax(dim=-1)
        self.proj = after_value(attention)

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns the mean, ``[B, prefix + N, D] -> [B, 1, D]``."""
        x = hidden[:, self.prefix :] if self.prefix else hidden
        _, tokens, dim = x.shape
        split = self.query_key(x).reshape(-1, tokens, 2, self.heads, dim // self.heads)
        q, k = split.permute(2, 0, 3, 1, 4).unbind(0)
        weights = self.softmax(q @ k.transpose(-2, -1)).mean(dim=2)  # [B, heads, N]
        heads = (weights @ x)[:, :, None] @ self.values  # [B, heads, 1, D / heads]
        mean: Tensor = self.proj(heads.reshape(-1, 1, dim))
        return mean


def head(config: LGViTConfig, exit: ExitConfig) -> ExitHead:
    """Returns a fresh head with as many attention heads as the block before it."""
    sizes = config.blocks[exit.block - 1]
    body = _SelfAttention(sizes.dim, sizes.num_heads, qkv_bias=config.qkv_bias)
    return body_head(config, exit, body)
