"""Builds a model from a state dict under foreign names; all origins share this code.

Each origin lists its names of our modules; a parameter is named after its module.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.errors import CheckpointError
from lgvit_edge.model.checkpoints.weights import State
from lgvit_edge.model.heads import Names
from lgvit_edge.model.lgvit import LGViT


@dataclass(frozen=True)
class Source:
    """Says where one of our parameters is in a foreign state dict.

    Attributes:
        names: tensors there, concatenated along dimension 1 when there are several.
        part: 0, 1 or 2 for that third of a stacked query-key-value tensor; None for all.
    """

    names: tuple[str, ...]
    part: int | None = None


# Foreign tensors that we do not need: poolers without an exit, counters, constants and leftovers
# of the authors' training.
_IGNORED = re.compile(
    r"\.pooler\.dense\.|num_batches_tracked$|mask_token$|relative_position_index$|attn_mask$"
    r"|^layernorm\.|^downsampling_r\d\."
)


def fitted(
    config: LGViTConfig, state: State, naming: Callable[[LGViT], dict[str, Source]], path: Path
) -> LGViT:
    """Returns a model with these weights, in eval mode; all are checked before any is copied.

    Args:
        config: of the model.
        state: the weights, under whatever names.
        naming: returns where each parameter of the model comes from.
        path: of the checkpoint, for messages.

    Raises:
        CheckpointError: with every name, shape and value that does not fit.
    """
    with torch.device("meta"):  # no memory is spent before the weights are known to fit
        model = LGViT(config)
    sources = naming(model)
    faults, weights = [], {}
    for name, target in model.state_dict().items():
        if name not in sources:
            weights[name] = torch.zeros(target.shape, dtype=target.dtype)  # num_batches_tracked
            continue
        source = sources[name]
        missing = [n for n in source.names if n not in state]
        if missing:
            faults.append(f"missing {', '.join(missing)}")
            continue
        label = " + ".join(source.names)
        if kinds := [k for n in source.names if (k := _odd_kind(state[n], target))]:
            faults.append(f"{label} is {kinds[0]}, expected plain numbers")
            continue
        tensor = _gather(source, state)
        if tensor is None or tensor.shape != target.shape:
            shapes = " + ".join(str(tuple(state[n].shape)) for n in source.names)
            of = "" if source.part is None else " (a third each)"
            faults.append(f"{label} is {shapes}, expected {tuple(target.shape)}{of}")
            continue
        weights[name] = tensor.to(target.dtype)
        if not bool(torch.isfinite(weights[name]).all()):
            faults.append(f"{label} holds NaN or infinity")
        elif name.endswith("running_var") and bool((weights[name] < 0).any()):
            faults.append(f"{label} holds negative variances")
    used = {name for source in sources.values() for name in source.names}
    extra = sorted(name for name in state if name not in used and not _IGNORED.search(name))
    faults += [f"unexpected {name}" for name in extra]
    if faults:
        listed = "\n  ".join(faults[:20])
        more = f"\n  and {len(faults) - 20} more" if len(faults) > 20 else ""
        raise CheckpointError(f"{path} does not fit its configuration:\n  {listed}{more}")
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(True).eval()


def _odd_kind(tensor: Tensor, target: Tensor) -> str | None:
    """Returns why a tensor of any shape cannot be a weight, or None."""
    plain = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        return f"{tensor.layout} on {tensor.device}"
    if target.is_floating_point() and tensor.dtype not in plain:
        return str(tensor.dtype)
    return None


def _gather(source: Source, state: State) -> Tensor | None:
    tensors = [state[name] for name in source.names]
    if len(tensors) > 1:
        if any(t.ndim != 3 or t.shape[::2] != tensors[0].shape[::2] for t in tensors):
            return None
        return torch.cat(tensors, dim=1)
    if source.part is None:
        return tensors[0]
    if tensors[0].ndim == 0 or tensors[0].shape[0] % 3:
        return None
    return tensors[0].chunk(3)[source.part].contiguous()


def places(config: LGViTConfig) -> list[tuple[int, int]]:
    """Returns each block's stage and its place there, both from 0; only a Swin has many stages."""
    depths = config.depths or (config.num_blocks,)
    return [(stage, place) for stage, depth in enumerate(depths) for place in range(depth)]


def finals(theirs: list[str]) -> Names:
    """Returns the foreign names of the linear layers of the final classifier."""
    return {f"backbone.final.classifier.linears.{j}": name for j, name in enumerate(theirs)}


def sources_of(model: LGViT, names: Names, tokens: list[str]) -> dict[str, Source]:
    """Returns the source of every parameter that ``names`` lists, itself or by its module."""
    sources = {}
    for name in model.state_dict():
        if name == "backbone.embedding.prefix" and tokens:
            sources[name] = Source(tuple(tokens[: model.config.prefix_tokens]))
        parts = name.split(".")
        for count in range(len(parts), 0, -1):
            theirs = names.get(".".join(parts[:count]))
            if theirs is None or parts[-1] == "num_batches_tracked":
                continue
            text, part = (theirs, None) if isinstance(theirs, str) else theirs
            sources[name] = Source((".".join([text, *parts[count:]]),), part)
            break
    return sources
