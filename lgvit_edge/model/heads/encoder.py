"""The encoder head: one more encoder block, then an MLP head (ViT-EE)."""

from __future__ import annotations

from torch import Tensor, nn

from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.architecture.families import FAMILIES
from lgvit_edge.architecture.sizes import BlockConfig
from lgvit_edge.model.backbones.block import Attention, Block
from lgvit_edge.model.backbones.first_tokens import FirstTokensBlock
from lgvit_edge.model.heads import mlp
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
        return nn.Sequential(FirstTokensBlock(self.block, self.tokens_read), self.readout)

    def authors(self) -> Names:
        """Returns the authors' names of this head's modules."""
        block = within("block", block_names("attention"), "layer")
        return block | within("readout", self.readout.authors(), "classifier")


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
