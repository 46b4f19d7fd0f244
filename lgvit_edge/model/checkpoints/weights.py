"""Reads weights from disk: pickles, safetensors, shards and the folders that hold them.

Nothing is executed: pickles load with ``weights_only=True``.
"""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from lgvit_edge._support.optional import require
from lgvit_edge.errors import CheckpointError

State = dict[str, Tensor]
_FILES = ("model.safetensors", "pytorch_model.bin")


def read_folder(path: Path) -> tuple[dict[str, Any], State]:
    """Reads ``config.json`` and the weights beside it, in one file or in shards.

    Raises:
        CheckpointError: either is missing or damaged.
    """
    config = read_json(path / "config.json")
    for name in _FILES:
        if (path / name).is_file():
            return config, _state(path / name)
        if (path / f"{name}.index.json").is_file():
            return config, _shards(path, f"{name}.index.json")
    names = ", ".join(name for file in _FILES for name in (file, f"{file}.index.json"))
    raise CheckpointError(f"{path}: expected one of {names} beside config.json")


def _shards(folder: Path, name: str) -> State:
    places = read_json(folder / name).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
        raise CheckpointError(f"{folder / name}: expected a weight_map of file names")
    state: State = {}
    for file in sorted(set(places.values())):
        if Path(file).name != file or file in (".", "..") or len(file) > 255:
            raise CheckpointError(f"{folder / name}: {file[:99]!r} is no name of a file beside it")
        state |= _state(folder / file)
    missing = sorted(set(places) - set(state))
    if missing:
        raise CheckpointError(f"{folder / name} lists {', '.join(missing[:4])}, found in no shard")
    return state


def _state(file: Path) -> State:
    state = read_safetensors(file)[0] if file.suffix == ".safetensors" else read_pickle(file)
    if not is_state(state):
        raise CheckpointError(f"{file}: expected a state dict of tensors")
    return state


def read_json(file: Path, *, absent: bool = False) -> dict[str, Any]:
    """Reads a JSON object from a file; if it may be ``absent``, an empty one stands in.

    Raises:
        CheckpointError: it cannot be read, or is not an object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if absent and isinstance(error, FileNotFoundError):
            return {}
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: expected an object")
    return content


def is_state(state: object) -> TypeGuard[State]:
    """Says whether a value is a dict of tensors by name."""
    return isinstance(state, dict) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    )


def read_pickle(path: Path) -> Any:
    """Reads what ``torch.save`` wrote: tensors and plain types only.

    Raises:
        CheckpointError: missing, damaged, or holding anything else.
    """
    _require_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # The rest of PyTorch's message advises to trust the file.
        match = re.search(r"unsupported (?:global|class)[:\w. ]*", str(error), re.IGNORECASE)
        reason = f" ({match[0][:200]})" if match else ""
        raise CheckpointError(
            f"{path} was refused: it is damaged or holds more than tensors and plain types{reason}"
        ) from None
    except Exception as error:  # damaged bytes make the unpickler raise nearly anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path} cannot be read, it is truncated or not a checkpoint ({reason[:200]})"
        ) from None


def read_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    """Reads tensors by name and the file's metadata.

    Raises:
        CheckpointError: missing or damaged.
        MissingDependency: without the package that reads it.
    """
    _require_file(path)
    package = require("safetensors", extra="export")
    try:
        with package.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata
    except Exception as error:  # damaged bytes make the reader raise nearly anything
        raise CheckpointError(
            f"{path} cannot be read, it is truncated or not a safetensors file ({error})"
        ) from None


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"no such checkpoint: {path}")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty")
