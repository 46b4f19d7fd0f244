"""Loads trained models of any origin: our own, the authors', Hugging Face's and timm's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lgvit_edge.errors import CheckpointError, ConfigError, LGViTEdgeError
from lgvit_edge.model.checkpoints.authors import attached, authors_config, authors_names
from lgvit_edge.model.checkpoints.fitting import fitted
from lgvit_edge.model.checkpoints.huggingface import (
    huggingface_config,
    huggingface_names,
    huggingface_preprocess,
    model_types,
    saved,
)
from lgvit_edge.model.checkpoints.own import FORMAT, own_config, own_header, own_names
from lgvit_edge.model.checkpoints.timm import timm_config, timm_names
from lgvit_edge.model.checkpoints.weights import (
    is_state,
    read_folder,
    read_json,
    read_pickle,
    read_safetensors,
)
from lgvit_edge.model.lgvit import LGViT


@dataclass(frozen=True)
class _Stored:
    """Holds what was read from a path.

    Attributes:
        path: of a file or a folder.
        content: the weights, or any content of a pickle.
        config: ``config.json`` of a folder; empty for a file.
        header: of a file of ours; None for others.
    """

    path: Path
    content: Any
    config: dict[str, Any]
    header: Any = None

    @property
    def authors(self) -> bool:
        """Says whether it is an LGViT of the authors."""
        return "highway_type" in self.config


def load_checkpoint(path: str | Path) -> LGViT:
    """Loads an LGViT, exits included, in eval mode.

    Reads our ``model.pt`` and ``.safetensors``, and the authors' directories.

    Raises:
        CheckpointError: missing, damaged, not a checkpoint, or its names or shapes do not fit.
        MissingDependency: a ``.safetensors`` file without the package that reads it.
    """
    return _checkpoint(_read(Path(path)))


def load_backbone(path: str | Path, *, arch: str | None = None) -> LGViT:
    """Loads a plain backbone as an LGViT without exits, in eval mode: where training starts.

    Reads folders of Hugging Face and timm, and timm state dicts. Family and size come from
    ``config.json`` or are inferred from names and shapes; ``arch``, one of
    ``architectures()``, sets for timm what they do not tell.

    Raises:
        CheckpointError: missing, damaged, not such a backbone, or its shapes do not fit.
    """
    return _backbone(_read(Path(path)), arch)


def load_model(path: str | Path, *, arch: str | None = None) -> LGViT:
    """Loads an LGViT with its exits, or a plain backbone without any.

    Raises:
        CheckpointError: neither.
    """
    stored = _read(Path(path))
    exits = stored.authors or stored.header is not None
    return _checkpoint(stored) if exits else _backbone(stored, arch)


def _read(path: Path) -> _Stored:
    if path.is_dir():
        config, state = read_folder(path)
        return _Stored(path, state, config)
    if path.suffix == ".safetensors":
        state, metadata = read_safetensors(path)
        return _Stored(path, state, {}, own_header(metadata))
    content = read_pickle(path)
    ours = isinstance(content, dict) and content.get("format") == FORMAT
    return _Stored(path, content.get("state"), {}, content) if ours else _Stored(path, content, {})


def _checkpoint(stored: _Stored) -> LGViT:
    path, state = stored.path, stored.content
    if stored.authors:
        config = authors_config(stored.config, state)
        preprocessor = read_json(path / "preprocessor_config.json", absent=True)
        try:
            config = config.replace(preprocess=huggingface_preprocess(preprocessor, config))
        except ConfigError as error:
            raise CheckpointError(str(error)) from None
        state = attached(saved(state), stored.config, config)
        return fitted(config, state, authors_names, path)
    if stored.header is None and (stored.config or path.suffix != ".safetensors"):
        raise CheckpointError(
            f"{path} is not an LGViT checkpoint: expected a file of `lgvit-edge train` or an "
            "authors' directory. A backbone without exits is where training starts; run: "
            f"lgvit-edge train --backbone {path} --data DIR --out model.pt"
        )
    config = own_config(stored.header, path)
    if not is_state(state):
        raise CheckpointError(f"{path}: expected a state dict of tensors under 'state'")
    return fitted(config, state, own_names, path)


def _backbone(stored: _Stored, arch: str | None) -> LGViT:
    path, state = stored.path, stored.content
    if stored.config and "architecture" not in stored.config:  # only timm writes that key
        preprocessor = read_json(path / "preprocessor_config.json", absent=True)
        state = saved(state)
        config = huggingface_config(stored.config, state, preprocessor)
        prefix = stored.config["model_type"]
        return fitted(config, state, lambda model: huggingface_names(model, prefix), path)
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]  # DeiT's and Swin's authors wrap theirs
    if stored.header is not None or not is_state(state):
        raise CheckpointError(f"{path}: expected a state dict of tensors")
    if any(name.startswith(tuple(f"{prefix}." for prefix in model_types())) for name in state):
        raise CheckpointError(
            f"{path} is named as Hugging Face does, which needs config.json: give the folder that "
            "holds both"
        )
    try:
        config = timm_config(state, arch, stored.config)
    except (IndexError, TypeError, ValueError) as error:  # sizes read off tensors of another rank
        if isinstance(error, LGViTEdgeError):
            raise
        raise CheckpointError(f"{path}: its tensors are not those of a ViT ({error})") from None
    return fitted(config, state, lambda model: timm_names(model, state), path)
