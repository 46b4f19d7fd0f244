"""The global aggregation head, GAH (paper Eqs. 3 and 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.architecture.heads import GAH_HEADS
from lgvit_edge.model.backbones.block import Attention
from lgvit_edge.model.heads.attention import MeanAttention
from lgvit_edge.model.heads.base import ExitHead, Names, body_head


class GlobalAggregation(Attention):
    """Computes GAH features: convergence with window s (Eq. 3), then self-attention (Eq. 4).

    ``average`` averages each s x s window as the paper writes; the authors' code, the default,
    keeps pixels 0, s, 2s...
    """

    residual = False
    authors: Names = {
        **{part: ("mlp.qkv", third) for third, part in enumerate(("query", "key", "value"))},
        "proj": "mlp.proj",
    }

    def __init__(self, dim: int, grid: int, window: int, *, average: bool) -> None:
        super().__init__(dim, GAH_HEADS, qkv_bias=False)
        self.grid, self.window, self.average = grid, window, average

    def features(self, patches: Tensor) -> Tensor:
        """Returns the features; N' is ceil(H/s)^2 subsampled or floor(H/s)^2 averaged."""
        return self.forward(self.converge(patches))

    def converge(self, patches: Tensor) -> Tensor:
        """Returns the converged patches (Eq. 3), ``[B, N, D] -> [B, N', D]``."""
        if self.average:
            return average_windows(patches, self.grid, self.window)
        return patches.index_select(1, self.indices().to(patches.device))

    def indices(self) -> Tensor:
        """Returns the indices of the tokens that subsampling keeps, ``[N']``."""
        tokens = torch.arange(self.grid**2).reshape(self.grid, self.grid)
        return tokens[:: self.window, :: self.window].flatten()

    def pooled(self, prefix: int) -> nn.Module:
        """Returns a module for the features' mean, ``[B, prefix + N, D] -> [B, 1, D]``."""
        return nn.Sequential(_Converge(self, prefix), MeanAttention(self))

    def folded(self) -> nn.Module:
        """Returns a module for the features, ``[B, N, D] -> [B, N', D]``."""
        return nn.Sequential(_Converge(self, 0), self)  # forward is the attention alone


def average_windows(patches: Tensor, grid: int, window: int) -> Tensor:
    """Returns the mean of each whole window, ``[B, grid^2, D] -> [B, (grid // window)^2, D]``."""
    side, dim = grid // window, patches.shape[-1]
    image = patches.reshape(-1, grid, grid, dim)[:, : side * window, : side * window]
    windows = image.reshape(-1, side, window, side, window, dim)
    return windows.mean(dim=(2, 4)).flatten(1, 2)


class _Converge(nn.Module):
    """Convergence of tokens after a prefix; subsampling is one gather of constant indices."""

    indices: Tensor

    def __init__(self, body: GlobalAggregation, prefix: int) -> None:
        super().__init__()
        self.prefix, self.grid, self.window = prefix, body.grid, body.window
        self.average = body.average
        self.register_buffer("indices", prefix + body.indices().to(body.proj.weight.device))

    def forward(self, hidden: Tensor) -> Tensor:
        if self.average:
            return average_windows(hidden[:, self.prefix :], self.grid, self.window)
        return hidden.index_select(1, self.indices)


def head(config: LGViTConfig, exit: ExitConfig) -> ExitHead:
    """Returns a fresh GAH."""
    sizes = config.blocks[exit.block - 1]
    body = GlobalAggregation(sizes.dim, sizes.grid, exit.size, average=config.gah_average)
    return body_head(config, exit, body)
