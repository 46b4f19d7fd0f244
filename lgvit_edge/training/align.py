"""The aligning module of heterogeneous distillation (paper section 3.4)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.architecture.heads import HEAD_KINDS


class Align(nn.Module):
    """Maps the last block's tokens to an exit's N' tokens: depthwise convolution, GELU, BatchNorm.

    It is trained with the heads and not exported.
    """

    def __init__(self, config: LGViTConfig, exit: ExitConfig) -> None:
        super().__init__()
        dim, self.grid = config.blocks[-1].dim, config.blocks[-1].grid
        stride = HEAD_KINDS[exit.head].stride(exit.size)
        if stride > 1 and config.gah_average:
            kernel, padding = stride, 0  # floor(H / s) outputs a side, each reads its window
        else:
            kernel, padding = 3, 1  # ceil(H / s) outputs a side, as subsampling gives
        self.conv = nn.Conv2d(
            dim, dim, kernel, stride=stride, padding=padding, groups=dim, bias=True
        )
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, patches: Tensor) -> Tensor:
        """Returns the aligned tokens, ``[B, N, D] -> [B, N', D]``."""
        image = patches.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        aligned: Tensor = self.norm(functional.gelu(self.conv(image)))
        return aligned.flatten(2).transpose(1, 2)
