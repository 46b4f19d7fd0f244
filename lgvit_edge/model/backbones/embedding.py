"""What the embeddings of all families share."""

from __future__ import annotations

from torch import Tensor, nn

from lgvit_edge.architecture.config import LGViTConfig


class PatchEmbedding(nn.Module):
    """A convolution over patches; a family adds to it what makes hidden states of them."""

    def __init__(self, config: LGViTConfig) -> None:
        super().__init__()
        side = config.patch_size
        self.patch = nn.Conv2d(3, config.hidden_size, kernel_size=side, stride=side)

    def reset(self) -> None:
        """Fresh values for what is not a layer; layers are reset with all others."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Normalised ``[B, 3, H, W] float -> [B, T, D]``."""
        return self.assemble(self.patch(pixel_values).flatten(2).transpose(1, 2))

    def assemble(self, patches: Tensor) -> Tensor:
        """Hidden states of embedded patches, ``[B, N, D] -> [B, T, D]``."""
        raise NotImplementedError
