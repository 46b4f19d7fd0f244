"""The convolution head: one dense 3x3 convolution (paper Table 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.model.heads.base import ExitHead, Names, affine, as_image, body_head


class Convolution(nn.Module):
    """Computes features of the patch tokens: 3x3 -> GELU -> BN, no residual."""

    residual = False
    authors: Names = {"conv": "mlp.conv.0", "norm": "mlp.conv.2"}

    def __init__(self, dim: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)
        self.norm = nn.BatchNorm2d(dim)

    def features(self, patches: Tensor) -> Tensor:
        """Returns the features, ``[B, N, D] -> [B, N, D]``."""
        x: Tensor = self.norm(functional.gelu(self.conv(as_image(patches, self.grid))))
        return x.flatten(2).transpose(1, 2)

    def pooled(self, prefix: int) -> nn.Module:
        """Returns a module for the features' mean, ``[B, prefix + N, D] -> [B, 1, D]``."""
        return _Pooled(self, prefix)

    def folded(self) -> nn.Module:
        """Returns a module for the features, ``[B, N, D] -> [B, N, D]``."""
        return _Folded(self, 0)


class _Affine(nn.Module):
    """The convolution, then the norm as one multiplication and one addition."""

    scale: Tensor
    shift: Tensor

    @torch.no_grad()
    def __init__(self, body: Convolution, prefix: int) -> None:
        super().__init__()
        self.grid, self.prefix, self.conv = body.grid, prefix, body.conv
        scale, shift = affine(body.norm)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def convolved(self, hidden: Tensor) -> Tensor:
        """Applies the convolution, ``[B, prefix + N, D] -> [B, D, grid, grid]``."""
        return functional.gelu(self.conv(as_image(hidden[:, self.prefix :], self.grid)))


class _Pooled(_Affine):
    def forward(self, hidden: Tensor) -> Tensor:
        mean = self.convolved(hidden).mean(dim=(2, 3))[:, None]
        return mean * self.scale + self.shift


class _Folded(_Affine):
    def forward(self, patches: Tensor) -> Tensor:
        tokens = self.convolved(patches).flatten(2).transpose(1, 2)
        return tokens * self.scale + self.shift


def head(config: LGViTConfig, exit: ExitConfig) -> ExitHead:
    """Returns a fresh convolution head."""
    sizes = config.blocks[exit.block - 1]
    return body_head(config, exit, Convolution(sizes.dim, sizes.grid))
