"""A block whose output is read at its first tokens alone, as after a ViT's last block.

Keys and values come from all tokens. All else is computed for the tokens that are read.

Shapes: B images, T tokens, R first tokens that are read, D width.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn

from lgvit_edge.model.backbones.block import (
    Attention,
    Block,
    after_value,
    merge_heads,
    per_head,
    split_heads,
)
from lgvit_edge.model.backbones.classifier import TokenClassifier
from lgvit_edge.model.backbones.positions import RelativeBias, Rotation


def tokens_read(final: nn.Module) -> int:
    """Returns how many of the first tokens a final classifier reads; 0: all of them.

    Only what is known to read no more counts: a subclass may.
    """
    return len(final.classifier.linears) if type(final) is TokenClassifier else 0


def deployed_block(block: nn.Module, read: int) -> nn.Module:
    """Returns the block as it is exported where its first ``read`` tokens are read; 0: all.

    It maps ``[B, T, D]`` to ``[B, read, D]``. A block of another kind than a ViT's stays whole and
    returns all tokens: it may mix them elsewhere than in its attention.
    """
    if read and _is_known(block):
        return FirstTokensBlock(block, read)
    return block.deployed()  # type: ignore[operator, no-any-return]


def _is_known(block: nn.Module) -> TypeGuard[Block]:
    # Types exactly: a subclass may compute something else.
    if type(block) is not Block or type(block.attention) is not Attention or block.merge:
        return False
    rotation, bias = block.attention.rotation, block.attention.relative_bias
    return type(rotation) in (type(None), Rotation) and type(bias) in (type(None), RelativeBias)


class FirstTokensBlock(Block):
    """The output of a block at its first tokens, ``[B, T, D] -> [B, R, D]``.

    It shares the block's parameters, and its parts have the block's names.
    """

    def __init__(self, block: Block, read: int) -> None:
        nn.Module.__init__(self)
        assert isinstance(block.attention, Attention)
        attention = _FirstTokensAttention(block.attention, read)
        modules = {**block._modules, "attention": attention}
        vars(self).update(vars(block), _modules=modules, read=read)

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``[B, R, D]`` for ``[B, T, D]``."""
        tokens: Tensor = x[:, : self.read] + self.attention(self.norm1(x))
        return tokens + self.mlp(self.norm2(tokens))


class _FirstTokensAttention(nn.Module):
    """Self-attention in which the first tokens ask all, ``[B, T, D] -> [B, R, D]``.

    One or two queries need no projected keys and values: with q_h the query of head h, its scores
    are ``(q_h K_h) X^T``, and its output ``(w_h X) V_h``, X being the normed tokens. The key's bias
    adds the same to all scores of a query, which the softmax takes out again. Keys that are normed
    or turned by their positions are projected.
    """

    bias: Tensor | None

    @torch.no_grad()
    def __init__(self, attention: Attention, read: int) -> None:
        super().__init__()
        self.read, self.heads = read, attention.heads
        width = attention.query.in_features // self.heads
        self.scale = width**-0.5
        self.query, self.query_norm = attention.query, attention.query_norm
        self.key = self.key_norm = self.query_rotation = self.key_rotation = None
        if attention.query_norm is None and attention.rotation is None:
            self.keys = nn.Parameter(attention.key.weight.unflatten(0, (self.heads, width)))
        else:
            self.key, self.key_norm = attention.key, attention.key_norm
        if attention.rotation is not None:
            self.query_rotation = attention.rotation.deployed(read)  # type: ignore[operator]
            self.key_rotation = attention.rotation.deployed()  # type: ignore[operator]
        table = attention.relative_bias
        self.register_buffer("bias", None if table is None else table()[:, :read].contiguous())
        self.softmax = nn.Softmax(dim=-1)
        self.values = nn.Parameter(per_head(attention.value.weight, self.heads))
        self.norm, self.value_bias = attention.norm, None
        if attention.norm is None:
            self.proj = after_value(attention)
        else:
            self.proj, self.value_bias = attention.proj, attention.value.bias

    def forward(self, x: Tensor) -> Tensor:
        """Returns the attended first tokens, ``[B, T, D] -> [B, R, D]``."""
        q = split_heads(self.query(x[:, : self.read]), self.heads)
        if self.query_norm is not None:
            q = self.query_norm(q)
        if self.query_rotation is not None:
            q = self.query_rotation(q)
        scores = self.scores(q * self.scale, x)  # [B, heads, R, T]
        if self.bias is not None:
            scores = scores + self.bias
        mixed = self.softmax(scores).flatten(1, 2) @ x  # [B, heads * R, D]
        attended = merge_heads(mixed.unflatten(1, (self.heads, self.read)) @ self.values)
        if self.value_bias is not None:
            attended = attended + self.value_bias
        if self.norm is not None:
            attended = self.norm(attended)
        projected: Tensor = self.proj(attended)
        return projected

    def scores(self, q: Tensor, x: Tensor) -> Tensor:
        """Returns the scores, ``[B, heads, R, D / heads], [B, T, D] -> [B, heads, R, T]``."""
        if self.key is None:
            asked = (q @ self.keys).flatten(1, 2)  # [B, heads * R, D]
            return (asked @ x.transpose(-2, -1)).reshape(-1, self.heads, self.read, x.shape[1])
        k = split_heads(self.key(x), self.heads)
        if self.key_norm is not None:
            k = self.key_norm(k)
        if self.key_rotation is not None:
            k = self.key_rotation(k)
        scores: Tensor = q @ k.transpose(-2, -1)
        return scores
