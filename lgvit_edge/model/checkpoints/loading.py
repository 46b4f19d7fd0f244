"""Reading and writing trained models.

Every name and shape is checked before the first weight is copied.
"""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lgvit_edge._support.files import replacing
from lgvit_edge._support.optional import require
from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.errors import CheckpointError, ConfigError, LGViTEdgeError
from lgvit_edge.model.checkpoints import names
from lgvit_edge.model.checkpoints.foreign import attached, authors_config, huggingface_config
from lgvit_edge.model.checkpoints.names import Source
from lgvit_edge.model.checkpoints.preprocessing import huggingface_preprocess
from lgvit_edge.model.checkpoints.timm import timm_config
from lgvit_edge.model.checkpoints.weights import (
    State,
    is_state,
    read_folder,
    read_json,
    read_pickle,
    read_safetensors,
)
from lgvit_edge.model.lgvit import LGViT

_FORMAT = "lgvit-edge"
_VERSION = 1  # 1: config, state
_MAX_HEADER = 100_000_000  # bytes; what safetensors itself accepts


def load_checkpoint(path: str | Path) -> LGViT:
    """An LGViT, exits included, in eval mode.

    Reads our ``model.pt`` and ``.safetensors``, and the authors' directories.

    Raises:
        CheckpointError: missing, damaged, not a checkpoint, or its names or shapes do not fit.
        MissingDependency: a ``.safetensors`` file without the package that reads it.
    """
    path = Path(path)
    if path.is_dir():
        config_json, state = read_folder(path)
        if "highway_type" not in config_json:
            raise _no_exits(path)
        config = authors_config(config_json, state)
        preprocessor = read_json(path / "preprocessor_config.json", absent=True)
        config = _preprocessed(config, preprocessor)
        state = attached(names.saved(state), config_json, config)
        return _model(config, state, names.authors, path)
    if path.suffix == ".safetensors":
        state, metadata = read_safetensors(path)
        config = _own_config(_parsed(metadata.get(_FORMAT)), path)
    else:
        content = read_pickle(path)
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise _no_exits(path)
        config = _own_config(content, path)
        found = content.get("state")
        if not is_state(found):
            raise CheckpointError(f"{path}: expected a state dict of tensors under 'state'")
        state = found
    return _model(config, state, names.own, path)


def load_model(path: str | Path, *, arch: str | None = None) -> LGViT:
    """An LGViT with its exits, or a plain backbone without any, whichever is there.

    Raises:
        CheckpointError: neither.
    """
    path = Path(path)
    return load_checkpoint(path) if _has_exits(path) else load_backbone(path, arch=arch)


def _no_exits(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is not an LGViT checkpoint: expected a file of `lgvit-edge train` or an "
        "authors' directory. A backbone without exits is where training starts; run: "
        f"lgvit-edge train --backbone {path} --data DIR --out model.pt"
    )


def load_backbone(path: str | Path, *, arch: str | None = None) -> LGViT:
    """A plain ViT, DeiT or Swin as an LGViT without exits, in eval mode: where training starts.

    Reads folders of Hugging Face and timm, and timm state dicts. Family and size come from
    ``config.json`` or are inferred from names and shapes; ``arch``, one of
    ``ARCHITECTURES``, overrides, for timm, what they cannot tell.

    Raises:
        CheckpointError: missing, damaged, not such a backbone, or its shapes do not fit.
    """
    path = Path(path)
    written: dict[str, Any] = {}
    if path.is_dir():
        written, state = read_folder(path)
        if "architecture" not in written:  # which is what timm calls it
            preprocessor = read_json(path / "preprocessor_config.json", absent=True)
            state = names.saved(state)
            config = huggingface_config(written, state, preprocessor)
            return _model(config, state, lambda m: names.huggingface(m, config.family), path)
    else:
        content = read_safetensors(path)[0] if path.suffix == ".safetensors" else read_pickle(path)
        wrapped = isinstance(content, dict) and isinstance(content.get("model"), dict)
        found = content["model"] if wrapped else content  # DeiT's and Swin's authors wrap theirs
        if not is_state(found):
            raise CheckpointError(f"{path}: expected a state dict of tensors")
        state = found
    if any(name.startswith(("vit.", "deit.", "swin.")) for name in state):
        raise CheckpointError(
            f"{path} is named as Hugging Face does, which needs config.json: give the folder that "
            "holds both"
        )
    try:
        config = timm_config(state, arch, written)
    except (IndexError, TypeError, ValueError) as error:  # sizes read off tensors of another rank
        if isinstance(error, LGViTEdgeError):
            raise
        raise CheckpointError(f"{path}: its tensors are not those of a ViT ({error})") from None
    return _model(config, state, lambda m: names.timm(m, state), path)


def _preprocessed(config: LGViTConfig, preprocessor: dict[str, Any]) -> LGViTConfig:
    try:
        return config.replace(preprocess=huggingface_preprocess(preprocessor, config))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def save_checkpoint(model: LGViT, path: str | Path) -> None:
    """Write ``model`` to ``path`` (``.pt`` or ``.safetensors``), whole or not at all.

    Raises:
        CheckpointError: the file cannot be written.
    """
    path = Path(path)
    header = {"format": _FORMAT, "version": _VERSION, "config": model.config.to_json()}
    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    try:
        with replacing(path) as partial:
            if path.suffix == ".safetensors":
                writer = require("safetensors.torch", extra="export")
                partial.write_bytes(writer.save(state, metadata={_FORMAT: json.dumps(header)}))
            else:
                torch.save({**header, "state": state}, partial)
    # torch reports a full disk as RuntimeError, a path without a name is a ValueError.
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"cannot write {path}: {error}") from None


def _has_exits(path: Path) -> bool:
    """Whether this is for ``load_checkpoint``; whatever cannot be read is not."""
    try:
        if path.is_dir():
            config = json.loads((path / "config.json").read_text(encoding="utf-8"))
            return isinstance(config, dict) and "highway_type" in config
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(min(length, _MAX_HEADER)))
            return _FORMAT in header.get("__metadata__", {})
        content = torch.load(path, map_location="meta", weights_only=True)
        return isinstance(content, dict) and content.get("format") == _FORMAT
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, struct.error):
        return False
    except pickle.UnpicklingError:
        return False


def _parsed(text: str | None) -> Any:
    try:
        return json.loads(text or "null")
    except (ValueError, RecursionError):
        return None


def _own_config(header: Any, path: Path) -> LGViTConfig:
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
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


def _model(
    config: LGViTConfig, state: State, naming: Callable[[LGViT], dict[str, Source]], path: Path
) -> LGViT:
    """Check every name and shape, then copy."""
    with torch.device("meta"):  # no memory is spent before the weights are known to fit
        model = LGViT(config)
    sources = naming(model)
    faults, found = [], {}
    for name, target in model.state_dict().items():
        if name not in sources:
            found[name] = torch.zeros(target.shape, dtype=target.dtype)  # num_batches_tracked
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
        found[name] = tensor.to(target.dtype)
        if not bool(torch.isfinite(found[name]).all()):
            faults.append(f"{label} holds NaN or infinity")
        elif name.endswith("running_var") and bool((found[name] < 0).any()):
            faults.append(f"{label} holds negative variances")
    used = (name for source in sources.values() for name in source.names)
    extra = names.unexpected(dict(state), used)
    faults += [f"unexpected {name}" for name in extra]
    if faults:
        shown = "\n  ".join(faults[:20])
        more = f"\n  and {len(faults) - 20} more" if len(faults) > 20 else ""
        raise CheckpointError(f"{path} does not fit its configuration:\n  {shown}{more}")
    model.load_state_dict(found, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.eval()


def _odd_kind(tensor: Tensor, target: Tensor) -> str | None:
    """Why a tensor cannot be a weight, whatever its shape; None when it can."""
    plain = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        return f"{tensor.layout} on {tensor.device}"
    if target.is_floating_point() and tensor.dtype not in plain:
        return str(tensor.dtype)
    return None


def _gather(source: Source, state: dict[str, Tensor]) -> Tensor | None:
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
