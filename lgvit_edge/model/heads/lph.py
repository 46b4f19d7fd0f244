"""The local perception head, LPH (paper Eqs. 1 and 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.model.backbones.block import linear
from lgvit_edge.model.heads import ExitHead, Names
from lgvit_edge.model.heads.base import affine, as_image, body_head, mean_row


class _LocalPerception(nn.Module):
    """Computes LPH features with convolutions (Eqs. 1, 2).

    1x1 -> GELU -> BN -> depthwise k x k -> GELU -> BN -> 1x1 -> BN. ``k = 0`` skips the depthwise
    part. ``residual`` adds the input (the authors' code, not Eq. 2).
    """

    authors: Names = {
        "expand": "mlp.conv1.0",
        "expand_norm": "mlp.conv1.2",
        "depthwise": "mlp.proj",
        "depthwise_norm": "mlp.proj_bn",
        "project": "mlp.conv2.0",
        "project_norm": "mlp.conv2.1",
    }

    def __init__(self, dim: int, grid: int, kernel: int, *, residual: bool) -> None:
        super().__init__()
        self.grid, self.residual = grid, residual
        self.expand = nn.Conv2d(dim, dim, 1)
        self.expand_norm = nn.BatchNorm2d(dim)
        self.depthwise = _depthwise(dim, kernel) if kernel else None
        self.depthwise_norm = nn.BatchNorm2d(dim) if kernel else None
        self.project = nn.Conv2d(dim, dim, 1)
        self.project_norm = nn.BatchNorm2d(dim)

    def features(self, patches: Tensor) -> Tensor:
        x: Tensor = self.expand_norm(functional.gelu(self.expand(as_image(patches, self.grid))))
        if self.depthwise is not None and self.depthwise_norm is not None:
            x = self.depthwise_norm(functional.gelu(self.depthwise(x)))
        x = self.project_norm(self.project(x)).flatten(2).transpose(1, 2)
        return x + patches if self.residual else x

    def pooled(self, prefix: int) -> nn.Module:
        return _Deployed(self, prefix, mean=True)

    def folded(self) -> nn.Module:
        return _Deployed(self, 0, mean=False)


def _depthwise(dim: int, kernel: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=bias)


class _Deployed(nn.Module):
    """The LPH's layers with their norms folded in, and maybe the mean before the last.

    1x1 convolutions are linear layers on tokens, which need no transposition. All but the depthwise
    part work on the prefix too. The mean leaves it out: a product with a constant row is quicker
    than slicing and reducing. The mean is that of the features without the residual.
    """

    shift_map: Tensor
    mean_row: Tensor

    @torch.no_grad()
    def __init__(self, body: _LocalPerception, prefix: int, *, mean: bool) -> None:
        super().__init__()
        dim, self.grid = body.expand.out_channels, body.grid
        self.prefix, self.mean, self.residual = prefix, mean, body.residual and not mean
        self.expand = linear(body.expand.weight.flatten(1), body.expand.bias)
        self.depthwise: nn.Conv2d | None = None
        scale, shift = affine(body.expand_norm)
        if body.depthwise is not None and body.depthwise_norm is not None:
            old, k = body.depthwise, body.depthwise.kernel_size[0]
            self.depthwise = _depthwise(dim, k, bias=False)
            self.depthwise.weight = nn.Parameter(old.weight * scale[:, None, None, None])
            # The norm's shift meets zero padding at the border, so it becomes a map, not a bias.
            ones = shift[None, :, None, None].expand(1, -1, self.grid, self.grid)
            mapped = functional.conv2d(ones, old.weight, old.bias, padding=k // 2, groups=dim)
            self.register_buffer("shift_map", mapped)
            scale, shift = affine(body.depthwise_norm)
        elif mean:
            self.register_buffer("mean_row", mean_row(prefix, self.grid**2))
        out_scale, out_shift = affine(body.project_norm)
        weight, bias = body.project.weight.flatten(1), body.project.bias
        self.project = linear(
            out_scale[:, None] * weight * scale,
            out_scale * (weight @ shift + (0 if bias is None else bias)) + out_shift,
        )

    def forward(self, hidden: Tensor) -> Tensor:
        x: Tensor = functional.gelu(self.expand(hidden))
        if self.depthwise is not None:
            image = as_image(x[:, self.prefix :] if self.prefix else x, self.grid)
            image = functional.gelu(self.depthwise(image) + self.shift_map)
            x = image.mean(dim=(2, 3))[:, None] if self.mean else image.flatten(2).transpose(1, 2)
        elif self.mean:
            x = self.mean_row @ x
        x = self.project(x)
        return x + hidden if self.residual else x


def head(config: LGViTConfig, exit: ExitConfig) -> ExitHead:
    """Returns a fresh LPH."""
    sizes = config.blocks[exit.block - 1]
    body = _LocalPerception(sizes.dim, sizes.grid, exit.size, residual=config.lph_residual)
    return body_head(config, exit, body)
