"""Reads weights from disk, and builds a model from them; models of all origins share this code.

Pickles, safetensors, shards and the folders that hold them are read. All that is missing or damaged
raises ``CheckpointError``. Each origin lists its names of our modules; a parameter is named after
its module.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from lgvit_edge._support import finite_json
from lgvit_edge._support.files import MAX_TEXT, read_bytes
from lgvit_edge._support.optional import require
from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.errors import CheckpointError
from lgvit_edge.model.checkpoints.formats import (
    AGAIN,
    MERGE,
    is_safetensors,
    is_zip,
    require_weights,
)
from lgvit_edge.model.checkpoints.pickles import read_pickle
from lgvit_edge.model.heads import Names
from lgvit_edge.model.lgvit import LGViT

State = dict[str, Tensor]
_FILES = ("model.safetensors", "pytorch_model.bin")
# Foreign tensors that we do not need: poolers without an exit, counters, constants and leftovers
# of the authors' training.
_IGNORED = re.compile(
    r"\.pooler\.dense\.|position_ids$|num_batches_tracked$|mask_token$|relative_position_index$|attn_mask$"
    r"|relative_coords_table$|^layernorm\.|^downsampling_r\d\."
)


def read_folder(path: Path) -> tuple[dict[str, Any], Any]:
    """Reads ``config.json`` and what lies beside it, in one file of weights or in shards."""
    names = sorted(entry.name for entry in path.iterdir())
    if "adapter_config.json" in names:
        raise CheckpointError(
            f"{path}: expected whole weights, found adapter_config.json of PEFT; {MERGE}"
        )
    listed = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") or "nothing"
    if "config.json" not in names:
        files = [name for name in names if name.endswith((".pt", ".pth", ".bin", ".safetensors"))]
        cure = "give the file of weights itself" if files else "save it with save_pretrained"
        raise CheckpointError(f"{path}: expected config.json, found {listed}; {cure}")
    config = read_json(path / "config.json")
    for name in _FILES:
        if name in names:
            return config, read_weights(path / name)[0]
        if f"{name}.index.json" in names:
            return config, _shards(path, f"{name}.index.json")
    expected = ", ".join(name for file in _FILES for name in (file, f"{file}.index.json"))
    raise CheckpointError(
        f"{path}: expected one of {expected} beside config.json, found {listed}; save the model "
        "with save_pretrained(FOLDER) from PyTorch"
    )


def _shards(folder: Path, name: str) -> State:
    places = _places(folder, name)
    state: State = {}
    for file in shard_names(folder, name):
        part = read_weights(folder / file)[0]
        if not is_state(part):
            raise CheckpointError(
                f"{folder / file}: expected a state dict of tensors, found other content; {AGAIN}"
            )
        state |= part
    missing = sorted(set(places) - set(state))
    if missing:
        raise CheckpointError(
            f"{folder / name}: expected {', '.join(missing[:4])} in its shards, found in none; "
            f"{AGAIN}"
        )
    return state


def shard_names(folder: Path, name: str) -> list[str]:
    """Returns the names of the files that an index names, all beside it.

    Raises:
        CheckpointError: the index is damaged, or leads elsewhere.
    """
    files = sorted(set(_places(folder, name).values()))
    for file in files:
        if Path(file).name != file or file in (".", "..") or len(file) > 255:
            raise CheckpointError(
                f"{folder / name}: expected names of files beside it, found {file[:99]!r}; {AGAIN}"
            )
    return files


def _places(folder: Path, name: str) -> dict[str, str]:
    places = read_json(folder / name).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
        raise CheckpointError(f"{folder / name}: expected a weight_map of file names; {AGAIN}")
    return places


def read_json(file: Path, *, absent: bool = False) -> dict[str, Any]:
    """Reads a JSON object from a file; if it may be ``absent``, an empty one stands in."""
    try:
        content = finite_json.loads(read_bytes(file, MAX_TEXT))
    except (OSError, ValueError) as error:
        if absent and isinstance(error, FileNotFoundError):
            return {}
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CheckpointError(f"{file} cannot be read as JSON ({reason}); {AGAIN}") from None
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise CheckpointError(f"{file}: expected a JSON object, found a {kind}; {AGAIN}")
    return content


def is_state(state: object) -> TypeGuard[State]:
    """Says whether a value is a dict of tensors by name."""
    return isinstance(state, dict) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    )


def read_weights(path: Path) -> tuple[Any, dict[str, str]]:
    """Reads a file of weights by its content, whatever its name; metadata of safetensors alone.

    Raises:
        CheckpointError: missing, damaged, or of a format that is not read.
    """
    require_weights(path)
    if is_zip(path) or (path.suffix != ".safetensors" and not is_safetensors(path)):
        return read_pickle(path), {}
    return _safetensors(path)


def _safetensors(path: Path) -> tuple[State, dict[str, str]]:
    """Reads tensors by name and the file's metadata; needs the package safetensors."""
    package = require("safetensors", extra="export")
    try:
        with package.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata
    except Exception as error:  # damaged bytes make the reader raise nearly anything
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} is cut off, damaged, or no safetensors file (its reader says: {reason}); "
            f"{AGAIN}"
        ) from None


@dataclass(frozen=True)
class Source:
    """Says where one of our parameters is in a foreign state dict."""

    names: tuple[str, ...]  # tensors there; several are concatenated along dimension 1
    part: int | None = None  # 0, 1 or 2: that third of a stacked query-key-value tensor


def fitted(
    config: LGViTConfig, state: State, naming: Callable[[LGViT], dict[str, Source]], path: Path
) -> LGViT:
    """Returns a model with these weights, in eval mode; all are checked before any is copied.

    ``naming`` returns where in ``state`` each parameter of the model is. ``path`` is the
    checkpoint's, for messages.

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
        if kinds := [k for n in source.names if (k := _unfit(state[n], target))]:
            faults.append(f"{label} is {kinds[0]}, expected float32, float16, bfloat16 or float64")
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
    if faults := list(dict.fromkeys(faults)):
        listed = "\n  ".join(faults[:20])
        more = f"\n  and {len(faults) - 20} more" if len(faults) > 20 else ""
        raise CheckpointError(
            f"{path} does not fit its configuration:\n  {listed}{more}\n"
            "give weights and configuration that belong together, as one program saved them"
        )
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(True).eval()


def odd_kind(tensor: Tensor) -> str | None:
    """Returns why a tensor holds no numbers of its own, or None."""
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return f"a {type(tensor).__name__}"
    if tensor.is_nested or tensor.layout != torch.strided:
        return "nested" if tensor.is_nested else str(tensor.layout)
    if tensor.device.type != "cpu" or tensor.is_quantized:
        return f"{tensor.dtype} on {tensor.device}"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "a view that repeats fewer numbers"
    return None


def _unfit(tensor: Tensor, target: Tensor) -> str | None:
    """Returns why a tensor of any shape cannot be a weight, or None."""
    plain = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    if (kind := odd_kind(tensor)) is not None:
        return kind
    return str(tensor.dtype) if target.is_floating_point() and tensor.dtype not in plain else None


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


def scale_layer(state: State, layer: str, scale: Tensor) -> None:
    """Multiplies a LayerScale ``[D]`` into the layer before it, in place.

    Raises:
        CheckpointError: the layer is missing, or has another width.
    """
    for name in (f"{layer}.weight", f"{layer}.bias"):
        tensor = state.get(name)
        if tensor is None or scale.shape != tensor.shape[:1]:
            raise CheckpointError(f"a LayerScale {tuple(scale.shape)} does not fit {name}")
        state[name] = tensor * scale.reshape(-1, *[1] * (tensor.ndim - 1))


def add_bias(state: State, name: str, shared: Tensor) -> None:
    """Adds a bias that all blocks share to a block's own, in place.

    Raises:
        CheckpointError: their shapes differ.
    """
    own = state.get(name)
    if own is not None and own.shape != shared.shape:
        raise CheckpointError(f"{name} is {tuple(own.shape)}, expected {tuple(shared.shape)}")
    state[name] = shared if own is None else own + shared


def places(config: LGViTConfig) -> list[tuple[int, int]]:
    """Returns each block's stage and its place there, both from 0; only a Swin has many stages."""
    depths = config.depths or (config.num_blocks,)
    return [(stage, place) for stage, depth in enumerate(depths) for place in range(depth)]


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
