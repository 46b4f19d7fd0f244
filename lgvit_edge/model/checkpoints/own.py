"""Reads and writes our own checkpoints: ``.pt`` (plain types, tensors) and ``.safetensors``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from lgvit_edge._support.files import replacing
from lgvit_edge._support.optional import require
from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.errors import CheckpointError, ConfigError
from lgvit_edge.model.checkpoints.fitting import Source
from lgvit_edge.model.lgvit import LGViT

FORMAT = "lgvit-edge"
_VERSION = 1  # 1: config, state


def save_checkpoint(model: LGViT, path: str | Path) -> None:
    """Writes ``model`` to ``path`` (``.pt`` or ``.safetensors``), completely or not at all.

    Raises:
        CheckpointError: the file cannot be written.
    """
    path = Path(path)
    header = {"format": FORMAT, "version": _VERSION, "config": model.config.to_json()}
    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    try:
        with replacing(path) as partial:
            if path.suffix == ".safetensors":
                writer = require("safetensors.torch", extra="export")
                partial.write_bytes(writer.save(state, metadata={FORMAT: json.dumps(header)}))
            else:
                torch.save({**header, "state": state}, partial)
    # torch reports a full disk as RuntimeError, a path without a name is a ValueError.
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"cannot write {path}: {error}") from None


def own_header(metadata: dict[str, str]) -> Any:
    """Returns the header of one of our ``.safetensors`` files; None for a file of others."""
    text = metadata.get(FORMAT)
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return text


def own_config(header: Any, path: Path) -> LGViTConfig:
    """Returns the configuration in the header of one of our checkpoints.

    Raises:
        CheckpointError: the header is none of ours, of another version, or contradicts itself.
    """
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(f"{path} was not written by lgvit-edge: it has no configuration")
    version = header.get("version")
    if type(version) is not int or version != _VERSION:
        raise CheckpointError(
            f"{path}: expected checkpoint version {_VERSION}, found {version!r}; "
            "run: pip install --upgrade lgvit-edge"
        )
    try:
        return LGViTConfig.from_json(header.get("config"))
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None


def own_names(model: LGViT) -> dict[str, Source]:
    """Returns each parameter's source in our checkpoints: its own name."""
    return {name: Source((name,)) for name in model.state_dict()}
