"""Turns what Swin V2 computes from its weights alone into the numbers that we keep.

An MLP makes the bias of each relative position, whatever the image: here it becomes a table.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.errors import CheckpointError
from lgvit_edge.model.checkpoints.weights import State, places

_PARTS = ("0.weight", "0.bias", "2.weight")  # of the MLP
_LARGEST = math.log(100)  # of the logarithms of scales


def tabled(
    state: State, config: LGViTConfig, pretrained: object, attention: str, mlp: str
) -> State:
    """Returns weights of a Swin V2 with a table, a plain scale and stacked biases per block.

    ``pretrained`` are the sides of the windows in which each stage was trained first, 0 for its
    own, as they scale the MLP's input; None where the file holds that input. ``attention`` is the
    name of an attention, with ``{}`` for stage and block, and ``mlp`` of the MLP in it.

    Raises:
        CheckpointError: something is missing, of another shape, or no finite number.
    """
    first = None
    if pretrained is not None:
        first = sides(pretrained, len(config.depths), "pretrained_window_sizes")
    result = dict(state)
    for (stage, place), block in zip(places(config), config.blocks, strict=True):
        at = attention.format(stage, place)
        names = [f"{at}.{mlp}.{part}" for part in _PARTS]
        scale, *parts = (_numbers(result, name) for name in (f"{at}.logit_scale", *names))
        if first is not None:
            given = coordinates(block.window, first[stage])
        else:
            given = _numbers(result, f"{at}.relative_coords_table")
            if given.shape[1:] != (2 * block.window - 1, 2 * block.window - 1, 2):
                shape = f"{tuple(given.shape)}, expected windows of {block.window}"
                raise CheckpointError(f"{at}.relative_coords_table is {shape}")
        result[f"{at}.relative_position_bias_table"] = _table(given, parts, names[0])
        result[f"{at}.logit_scale"] = scale.clamp(max=_LARGEST).exp().flatten()
        if f"{at}.q_bias" in result:
            query, value = (_numbers(result, f"{at}.{part}_bias").flatten() for part in "qv")
            # Keys have none.
            result[f"{at}.qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    return result


def _numbers(state: State, name: str) -> Tensor:
    """Takes a tensor out of ``state``, as float32."""
    if (tensor := state.pop(name, None)) is None:
        raise CheckpointError(f"missing {name}")
    if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        expected = "float32, float16, bfloat16 or float64"
        raise CheckpointError(f"{name} is {tensor.dtype}, expected {expected}")
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"{name} holds NaN or infinity")
    return tensor.float()


def _table(given: Tensor, parts: list[Tensor], name: str) -> Tensor:
    """Returns the bias of each relative position, ``[.., 2] -> [(2 w - 1)^2, heads]``."""
    inner, bias, outer = parts
    width = bias.shape
    if inner.shape != (*width, 2) or outer.shape != (len(outer), *width) or len(width) != 1:
        shapes = ", ".join(str(tuple(part.shape)) for part in parts)
        raise CheckpointError(
            f"{name} and what follows it are {shapes}, expected (n, 2), (n,), (heads, n)"
        )
    hidden = functional.relu(functional.linear(given.reshape(-1, 2), inner, bias))
    return 16 * torch.sigmoid(functional.linear(hidden, outer))


def coordinates(window: int, pretrained: int) -> Tensor:
    """Returns the MLP's input for each relative position, row and column, ``[(2 w - 1)^2, 2]``.

    They are log-spaced, and 1 is the farthest place in a window of side ``pretrained``, or of this
    one if that is 0.
    """
    steps = torch.arange(1 - window, window, dtype=torch.float32)
    steps = 8 * (steps / max((pretrained or window) - 1, 1))
    line = torch.sign(steps) * torch.log2(steps.abs() + 1) / math.log2(8)
    return torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1).reshape(-1, 2)


def sides(value: object, stages: int, name: str) -> list[int]:
    """Returns the side of each stage's square windows, of what others write for it.

    Raises:
        CheckpointError: they are not square, not whole, or not one per stage.
    """
    # What lists more stages than a model has is read as timm and transformers do.
    each = list(value)[:stages] if isinstance(value, (list, tuple)) else [value] * stages
    pairs: list[list[Any]] = [list(v) if isinstance(v, (list, tuple)) else [v] for v in each]
    good = all(pair and type(pair[0]) is int and 0 <= pair[0] <= 256 for pair in pairs)
    if len(each) != stages or not good or any(pair != pair[:1] * len(pair) for pair in pairs):
        raise CheckpointError(
            f"{name} must be the side of square windows, 0..256, one for each of {stages} stages; "
            f"found {str(value)[:100]}"
        )
    return [pair[0] for pair in pairs]
