"""The encoder head: one more encoder block, then an MLP head (ViT-EE)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.architecture.families import FAMILIES
from lgvit_edge.architecture.sizes import BlockConfig
from lgvit_edge.model.backbones.block import Attention, Block
from lgvit_edge.model.heads import mlp
from lgvit_edge.model.heads.attention import after_value, per_head
from lgvit_edge.model.heads.base import ExitHead, Names, block_names, within


class EncoderHead(ExitHead):
    """A head of one more block with full self-attention, then the family's MLP head.

    ``tokens_read`` says how many of the first tokens the MLP head reads; 0: all.
    """

    def __init__(self, block: Block, readout: ExitHead, tokens_read: int) -> None:
        super().__init__()
        self.block, self.readout, self.tokens_read = block, readout, tokens_read

    def features(self, hidden: Tensor) -> Tensor:
        """Returns the block's output, ``[B, T, D] -> [B, T, D]``."""
        encoded: Tensor = self.block(hidden)
        return encoded

    def classify(self, hidden: Tensor, features: Tensor) -> Tensor:
        """Returns the logits, ``[B, T, D], [B, T, D] -> [B, C]``; ``hidden`` is not read."""
        return self.readout.classify(features, features)

    def deployed(self) -> nn.Module:
        """Returns the head as it is exported, which computes only the tokens that are read."""
        if not self.tokens_read:
            return self
        return nn.Sequential(_PrefixBlock(self.block, self.tokens_read), self.readout)

    def authors(self) -> Names:
        """Returns the authors' names of this head's modules."""
        block = within("block", block_names("attention"), "layer")
        return block | within("readout", self.readout.authors(), "classifier")


class _PrefixBlock(nn.Module):
    """The block's output at the prefix tokens, ``[B, T, D] -> [B, prefix, D]``.

    One or two queries do not need keys and values of all T tokens: with q_h the query of head h,
    its scores are ``(q_h K_h) X^T``, and its output ``(w_h X) V_h``, X being the normed tokens. The
    key's bias adds the same to all scores of a query, which the softmax takes out again.
    """

    @torch.no_grad()
    def __init__(self, block: Block, prefix: int) -> None:
        super().__init__()
        attention = block.attention
        assert isinstance(attention, Attention)
        self.block, self.prefix, self.heads = block, prefix, attention.heads
        dim = attention.query.in_features
        self.scale = (dim // self.heads) ** -0.5
        keys = per_head(attention.key.weight, self.heads).transpose(1, 2).contiguous()
        self.query, self.keys = attention.query, nn.Parameter(keys)  # [heads, D / heads, D]
        self.values = nn.Parameter(per_head(attention.value.weight, self.heads))
        self.softmax, self.proj = nn.Softmax(dim=-1), after_value(attention)

    def forward(self, hidden: Tensor) -> Tensor:
        block, count, dim = self.block, self.prefix, hidden.shape[-1]
        x = block.norm1(hidden)  # [B, T, D]
        query = self.query(x[:, :count]) * self.scale
        split = query.reshape(-1, count, self.heads, dim // self.heads).transpose(1, 2)
        scores = (split @ self.keys) @ x[:, None].transpose(-2, -1)  # [B, heads, prefix, T]
        heads = (self.softmax(scores) @ x[:, None]) @ self.values  # [B, heads, prefix, D / heads]
        tokens = hidden[:, :count] + self.proj(heads.transpose(1, 2).reshape(-1, count, dim))
        encoded: Tensor = tokens + block.mlp(block.norm2(tokens))
        return encoded


def head(config: LGViTConfig, exit: ExitConfig) -> ExitHead:
    """Returns a fresh encoder head, whose block has full self-attention."""
    sizes, family = config.blocks[exit.block - 1], FAMILIES[config.family]
    heads = family.encoder_heads or sizes.num_heads
    width = exit.size or sizes.intermediate_size
    plain = BlockConfig(sizes.dim, sizes.grid, heads, width)
    attention = Attention(sizes.dim, heads, qkv_bias=config.qkv_bias)
    eps = family.encoder_eps or config.layer_norm_eps
    block = Block(plain, attention, eps=eps)
    read = config.classifiers if config.pooling == "token" else 0
    return EncoderHead(block, mlp.head(config, exit), read)
