"""Reading and writing trained models.

Nothing in a checkpoint is executed: pickles load with ``weights_only=True``. Every name and shape
is checked before the first weight is copied.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from lgvit_edge._files import replacing
from lgvit_edge._optional import require
from lgvit_edge.config import LGViTConfig
from lgvit_edge.errors import CheckpointError, ConfigError
from lgvit_edge.model import names
from lgvit_edge.model.foreign import authors_config, huggingface_config, timm_config
from lgvit_edge.model.lgvit import LGViT
from lgvit_edge.model.names import Source

_FORMAT = "lgvit-edge"
_VERSION = 1  # 1: config, state
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def load_checkpoint(path: str | Path) -> LGViT:
    """An LGViT, exits included, in eval mode.

    Reads our ``model.pt`` and ``.safetensors``, and the authors' directories (ViT and DeiT).

    Raises:
        CheckpointError: missing, damaged, not a checkpoint, or its names or shapes do not fit.
        MissingDependency: a ``.safetensors`` file without the package that reads it.
    """
    path = Path(path)
    if path.is_dir():
        config_json, state = _read_directory(path)
        config = authors_config(config_json)
        return _model(config, state, names.authors(config), path)
    if path.suffix == ".safetensors":
        state, metadata = _read_safetensors(path)
        config = _own_config(_parsed(metadata.get(_FORMAT)), path)
    else:
        content = _read_pickle(path)
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise CheckpointError(
                f"{path} is not an LGViT checkpoint: expected a file of `lgvit-edge train` or an "
                "authors' directory. A backbone without exits is where training starts; run: "
                f"lgvit-edge train --weights {path} --data DIR --out model.pt"
            )
        config = _own_config(content, path)
        found = content.get("state")
        if not _is_state(found):
            raise CheckpointError(f"{path}: expected a state dict of tensors under 'state'")
        state = found
    with torch.device("meta"):  # for its names only: a configuration may claim any size
        own = {name: Source((name,)) for name in LGViT(config).state_dict()}
    return _model(config, state, own, path)


def load_backbone(path: str | Path, *, arch: str | None = None) -> LGViT:
    """A plain ViT or DeiT as an LGViT without exits, in eval mode: where training starts.

    Reads Hugging Face directories and timm state dicts. Family and size are inferred from names
    and shapes; ``arch`` (``lgvit_edge.config.ARCHITECTURES``) overrides, for timm, what they
    cannot tell.

    Raises:
        CheckpointError: missing, damaged, not such a backbone, or its shapes do not fit.
    """
    path = Path(path)
    if path.is_dir():
        config_json, state = _read_directory(path)
        config = huggingface_config(config_json, state, _preprocessor(path))
        return _model(config, state, names.huggingface(config, config.family), path)
    if path.suffix == ".safetensors":
        content: Any = _read_safetensors(path)[0]
    else:
        content = _read_pickle(path)
    wrapped = isinstance(content, dict) and isinstance(content.get("model"), dict)
    state = content["model"] if wrapped else content  # DeiT's authors wrap theirs
    if not _is_state(state):
        raise CheckpointError(f"{path}: expected a state dict of tensors")
    try:
        config = timm_config(state, arch)
    except (IndexError, TypeError) as error:  # sizes were read off tensors of another rank
        raise CheckpointError(f"{path}: its tensors are not those of a ViT ({error})") from None
    return _model(config, state, names.timm(config), path)


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
    config: LGViTConfig, state: dict[str, Tensor], sources: dict[str, Source], path: Path
) -> LGViT:
    """Check every name and shape, then copy."""
    with torch.device("meta"):  # no memory is spent before the weights are known to fit
        model = LGViT(config)
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
    if tensors[0].shape[0] % 3:
        return None
    return tensors[0].chunk(3)[source.part].contiguous()


def _read_directory(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}/config.json cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}/config.json: expected an object")
    for name in _WEIGHT_FILES:
        if (path / name).is_file():
            file = path / name
            state = _read_safetensors(file)[0] if name.endswith("tensors") else _read_pickle(file)
            if not _is_state(state):
                raise CheckpointError(f"{file}: expected a state dict of tensors")
            return config, state
    raise CheckpointError(f"{path}: expected {' or '.join(_WEIGHT_FILES)} beside config.json")


def _preprocessor(path: Path) -> dict[str, Any]:
    try:
        found = json.loads((path / "preprocessor_config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}/preprocessor_config.json cannot be read: {error}") from None
    return found if isinstance(found, dict) else {}


def _is_state(state: object) -> TypeGuard[dict[str, Tensor]]:
    return isinstance(state, dict) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    )


def _read_pickle(path: Path) -> Any:
    _require_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path} was refused: it is damaged or holds more than tensors and plain types "
            f"({reason[:200]})"
        ) from None
    except Exception as error:  # damaged bytes make the unpickler raise nearly anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path} cannot be read, it is truncated or not a checkpoint ({reason[:200]})"
        ) from None


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
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
