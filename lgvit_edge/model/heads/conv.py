"""The convolution head: one dense 3x3 convolution (paper Table 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.model.heads.base import ExitHead, Names, affine, as_image, body_head


class _Convolution(nn.Module):
    """Computes features of the patch tokens: 3x3 -> GELU -> BN, no residual."""

    residual = False
    authors: Names = {"conv": "mlp.conv.0", "norm": "mlp.conv.2"}

    def __init__(self, dim: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)
        self.norm = nn.BatchNorm2d(dim)

    def features(self, patches: Tensor) -> Tensor:
        x: Tensor = self.norm(functional.gelu(self.conv(as_image(patches, self.grid))))
        return x.flatten(2).transpose(1, 2)

    def pooled(self, prefix: int) -> nn.Module:
        return _Deployed(self, prefix, mean=True)

    def folded(self) -> nn.Module:
        return _Deployed(self, 0, mean=False)


class _Deployed(nn.Module):
    """The convolution, maybe the mean, then the norm as one multiplication and one addition."""

    scale: Tensor
    shift: Tensor

    @torch.no_grad()
    def __init__(self, body: _Convolution, prefix: int, *, mean: bool) -> None:
        super().__init__()
        self.grid, self.prefix, self.mean, self.conv = body.grid, prefix, mean, body.conv
        scale, shift = affine(body.norm)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, hidden: Tensor) -> Tensor:
        x = functional.gelu(self.conv(as_image(hidden[:, self.prefix :], self.grid)))
        x = x.mean(dim=(2, 3))[:, None] if self.mean else x.flatten(2).transpose(1, 2)
        return x * self.scale + self.shift


def head(config: LGViTConfig, exit: ExitConfig) -> ExitHead:
    """Returns a fresh convolution head."""
    sizes = config.blocks[exit.block - 1]
    return body_head(config, exit, _Convolution(sizes.dim, sizes.grid))
