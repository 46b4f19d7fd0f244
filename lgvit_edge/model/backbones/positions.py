"""Positions inside attention: rotary ones, and a learnt bias per relative position.

Shapes: B images, T tokens (prefix tokens included), g side of the map of patches.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class RelativeBias(nn.Module):
    """A learnt bias per relative position of two patches, added to attention's scores (BEiT).

    The table ``[(2g - 1)^2 + 3, heads]`` ends in three rows for the class token: where it is the
    query, where it is the key, and where it is both.
    """

    def __init__(self, grid: int, heads: int) -> None:
        super().__init__()
        self.grid = grid
        self.table = nn.Parameter(torch.zeros((2 * grid - 1) ** 2 + 3, heads))

    def forward(self) -> Tensor:
        """Returns the bias of every pair of tokens, ``[heads, T, T]``."""
        rows = torch.from_numpy(_with_class_token(self.grid)).to(self.table.device)
        return self.table[rows].permute(2, 0, 1)

    @torch.no_grad()
    def deployed(self) -> nn.Module:
        """Returns a module that returns the same, as a constant."""
        return _DeployedBias(self.forward().contiguous())


class _DeployedBias(nn.Module):
    bias: Tensor

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("bias", bias)

    def forward(self) -> Tensor:
        return self.bias


@functools.lru_cache(maxsize=16)
def _with_class_token(grid: int) -> NDArray[np.int64]:
    """Returns the row of the table for every pair of tokens, ``[T, T]``."""
    token = (2 * grid - 1) ** 2
    rows = np.pad(relative_positions(grid).reshape(grid**2, grid**2), ((1, 0), (1, 0)))
    rows[0], rows[:, 0], rows[0, 0] = token, token + 1, token + 2
    return rows


@functools.lru_cache(maxsize=64)
def relative_positions(window: int) -> NDArray[np.int64]:
    """Returns the row of the bias table for every pair of places in a window, ``[w^4]``."""
    rows, columns = np.divmod(np.arange(window**2), window)
    down = rows[:, None] - rows + window - 1
    right = columns[:, None] - columns + window - 1
    flat: NDArray[np.int64] = (down * (2 * window - 1) + right).ravel()
    return flat


class Rotation(nn.Module):
    """Rotary positions: turns pairs of numbers of a query or key by the position of its patch."""

    def __init__(self, kind: str, grid: int, side: int, prefix: int, width: int) -> None:
        super().__init__()
        self.kind, self.grid, self.side, self.prefix = kind, grid, side, prefix
        self.width = width

    def tables(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Returns cosines and sines, each ``[T, width]``; prefix tokens are not turned."""
        angles = rotation_angles(self.kind, self.grid, self.side, self.prefix, self.width)
        turned = torch.from_numpy(angles)
        return turned.cos().to(like), turned.sin().to(like)

    def forward(self, x: Tensor) -> Tensor:
        """Returns queries or keys, turned, in their shape ``[B, heads, T, width]``."""
        return turned(x, *self.tables(x))

    def deployed(self, first: int | None = None) -> nn.Module:
        """Returns a module that does so with constant tables, for the ``first`` tokens or all."""
        cosines, sines = self.tables(torch.zeros(()))
        return _DeployedRotation(cosines[:first], sines[:first])


class _DeployedRotation(nn.Module):
    cosines: Tensor
    sines: Tensor

    def __init__(self, cosines: Tensor, sines: Tensor) -> None:
        super().__init__()
        self.register_buffer("cosines", cosines)
        self.register_buffer("sines", sines)

    def forward(self, x: Tensor) -> Tensor:
        return turned(x, self.cosines, self.sines)


def turned(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turns number i with number i + width / 2 of each token, ``[..., T, width]``."""
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat([-second, first], dim=-1) * sines


@functools.lru_cache(maxsize=64)
def rotation_angles(
    kind: str, grid: int, side: int, prefix: int, width: int
) -> NDArray[np.float32]:
    """Returns the angles in radians, ``[T, width]``: of rows, then of columns, twice.

    ``dinov3`` turns by 2 pi times the place in -1..1, over periods up to 100; ``eva`` by row and
    column, counted on a map of ``side``, over periods up to 2 pi 10,000.
    """
    share = np.arange(width // 4, dtype=np.float32) / (width // 4)
    if kind == "dinov3":
        places = 2 * ((np.arange(grid, dtype=np.float32) + 0.5) / grid) - 1
        speeds = 2 * math.pi / 100**share
    else:
        places = np.arange(grid, dtype=np.float32) / grid * (side or grid)
        speeds = 1 / 10_000**share
    line = places[:, None] * speeds
    rows, columns = np.repeat(line, grid, axis=0), np.tile(line, (grid, 1))
    half = np.concatenate([rows, columns], axis=1)
    angles = np.concatenate([half, half], axis=1)
    return np.pad(angles, ((prefix, 0), (0, 0))).astype(np.float32)
