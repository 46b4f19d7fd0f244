"""The patch embedding that all families share."""

from __future__ import annotations

from torch import Tensor, nn

from lgvit_edge.architecture.config import LGViTConfig


class PatchEmbedding(nn.Module):
    """Embeds patches with a convolution; each family adds the rest of its hidden states."""

    def __init__(self, config: LGViTConfig) -> None:
        super().__init__()
        side = config.patch_size
        self.patch = nn.Conv2d(3, config.hidden_size, kernel_size=side, stride=side)

    def reset(self) -> None:
        """Sets parameters outside layers to fresh values; the model resets layers."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Returns the hidden states of images, normalised ``[B, 3, H, W] float -> [B, T, D]``."""
        return self.assemble(self.patch(pixel_values).flatten(2).transpose(1, 2))

    def assemble(self, patches: Tensor) -> Tensor:
        """Returns the hidden states of embedded patches, ``[B, N, D] -> [B, T, D]``."""
        raise NotImplementedError
