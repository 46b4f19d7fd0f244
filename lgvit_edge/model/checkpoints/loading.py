"""Loads trained models of any origin: our own, the authors', Hugging Face's and timm's.

Our own are written here too: ``.pt`` (plain types, tensors) and ``.safetensors``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lgvit_edge._support import finite_json
from lgvit_edge._support.optional import require
from lgvit_edge._support.outputs import replacing
from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.errors import CheckpointError, ConfigError
from lgvit_edge.model.checkpoints import hub, huggingface, weights
from lgvit_edge.model.checkpoints.authors import attached, authors_config, authors_names
from lgvit_edge.model.checkpoints.containers import Note, note_in_log, weights_in
from lgvit_edge.model.checkpoints.huggingface import saved
from lgvit_edge.model.checkpoints.huggingface_images import (
    huggingface_preprocess,
    read_processor,
    say_assumed,
)
from lgvit_edge.model.checkpoints.timm import Hints, tabled, timm_config
from lgvit_edge.model.checkpoints.timm_names import structure
from lgvit_edge.model.checkpoints.timm_weights import arranged, named_as_eva, plain, timm_names
from lgvit_edge.model.lgvit import LGViT

_FORMAT = "lgvit-edge"
_VERSION = 1  # 1: config, state


@dataclass(frozen=True)
class Stored:
    """Holds what was read from a path, or fetched from the hub and then read."""

    path: Path  # of a file or a folder
    content: Any  # the weights, or any content of a pickle
    config: dict[str, Any]  # config.json of a folder; empty for a file
    header: Any = None  # of a file of ours; None for others
    source: str = ""  # on the hub, with its commit; nothing for a path

    @property
    def has_exits(self) -> bool:
        """Says whether this is an LGViT, of ours or of its authors, and not a plain backbone."""
        return "highway_type" in self.config or self.header is not None

    def model_weights(self, use_ema: bool, note: Note) -> weights.State:
        """Returns the weights of the one model in a file or folder of others."""
        return weights_in(self.content, self.path, use_ema=use_ema, note=note)

    def noted(self, model: LGViT) -> LGViT:
        """Returns the model that was read from this, which remembers where it is from."""
        if self.source:
            model.config = model.config.replace(source=self.source)
        return model


def save_checkpoint(model: LGViT, path: str | Path) -> None:
    """Writes ``model`` to ``path`` (``.pt`` or ``.safetensors``), completely or not at all.

    Raises:
        CheckpointError: the file cannot be written.
    """
    path = Path(path)
    header = {"format": _FORMAT, "version": _VERSION, "config": model.config.to_json()}
    state = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    try:
        needed = sum(tensor.nbytes for tensor in state.values())
        with replacing(path, needed=needed) as partial, partial.open("wb") as file:
            if path.suffix == ".safetensors":
                writer = require("safetensors.torch", extra="export")
                file.write(writer.save(state, metadata={_FORMAT: json.dumps(header)}))
            else:
                torch.save({**header, "state": state}, file)
    # A path without a name is a ValueError.
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot write {path}: {reason}") from None


def load_checkpoint(path: str | Path, *, use_ema: bool = False, note: Note = note_in_log) -> LGViT:
    """Loads an LGViT, exits included, in eval mode.

    Reads our ``model.pt`` and ``.safetensors``, and the authors' directories, which may be on the
    hub (``hf:owner/name``). Of the latter, ``use_ema`` takes the moving average of the weights
    where the trained ones lie beside it. ``note`` is told what was taken and left aside.

    Raises:
        CheckpointError: missing, damaged, not a checkpoint, or its names or shapes do not fit.
        MissingDependency: a ``.safetensors`` file without the package that reads it.
    """
    stored = read_stored(path, note)
    return stored.noted(_checkpoint(stored, use_ema, note))


def load_backbone(
    path: str | Path,
    *,
    arch: str | None = None,
    num_heads: int | None = None,
    classes: int | None = None,
    use_ema: bool = False,
    note: Note = note_in_log,
) -> LGViT:
    """Loads a plain backbone as an LGViT without exits, in eval mode: where training starts.

    Reads folders of Hugging Face and timm, and timm state dicts. Family and size come from
    ``config.json``, from names and shapes, and from the published architecture that the file is
    named after.

    Args:
        path: of a file or a folder, or ``hf:owner/name``, as ``hub.fetch`` takes it.
        arch: of timm weights: one of ``architectures()``, or timm's name.
        num_heads: attention heads of timm weights whose architecture is not known.
        classes: of a fresh classifier, where timm weights have none.
        use_ema: take the moving average of the weights, which must lie beside them.
        note: gets a sentence for everything that had to be chosen or assumed.

    Raises:
        CheckpointError: missing, damaged, not such a backbone, its shapes do not fit, or something
            that changes answers is not known.
    """
    stored = read_stored(path, note)
    return stored.noted(_backbone(stored, arch, num_heads, classes, use_ema, note))


def load_model(
    path: str | Path,
    *,
    arch: str | None = None,
    num_heads: int | None = None,
    classes: int | None = None,
    use_ema: bool = False,
    note: Note = note_in_log,
) -> LGViT:
    """Loads an LGViT with its exits, or a plain backbone without any; see ``load_backbone``.

    Raises:
        CheckpointError: neither.
    """
    stored = read_stored(path, note)
    if stored.has_exits:
        _refuse_heads(num_heads, stored.path)
        return stored.noted(_checkpoint(stored, use_ema, note))
    return stored.noted(_backbone(stored, arch, num_heads, classes, use_ema, note))


def read_stored(path: str | Path, note: Note = note_in_log) -> Stored:
    """Reads a file, a folder, or a model of the hub; ``note`` is told which commit was taken.

    Raises:
        CheckpointError: there is none, or it cannot be read.
        UsageError: it is a malformed name of the hub.
        MissingDependency: a package that reads or fetches it is not installed.
    """
    source = ""
    if hub.on_hub(path):
        path, source = hub.fetch(path, note)
    path = Path(path)
    if path.is_dir():
        config, state = weights.read_folder(path)
        return Stored(path, state, config, source=source)
    content, metadata = weights.read_weights(path)
    if isinstance(content, dict) and dict.get(content, "format") == f"{_FORMAT}-resume":
        raise CheckpointError(
            f"{path}: expected a model, found the state of a training that was interrupted; repeat "
            "its command to finish it, and give the file that it writes"
        )
    if isinstance(content, dict) and dict.get(content, "format") == _FORMAT:
        header = dict(dict.items(content))
        return Stored(path, header.get("state"), {}, header)
    return Stored(path, content, {}, _own_header(metadata))


def _checkpoint(stored: Stored, use_ema: bool, note: Note) -> LGViT:
    path, state = stored.path, stored.content
    if "highway_type" in stored.config:  # only the authors write that key
        state = saved(stored.model_weights(use_ema, note))
        config = authors_config(stored.config, state)
        preprocessor = read_processor(path)
        try:
            processor = "DeiT" if config.family == "deit" else "ViT"
            preprocess = huggingface_preprocess(preprocessor, config, processor)
            config = config.replace(preprocess=preprocess)
            say_assumed(preprocessor, config, path, note)
        except ConfigError as error:
            raise CheckpointError(str(error)) from None
        state = attached(state, stored.config, config)
        return weights.fitted(config, state, authors_names, path)
    if stored.header is None:
        raise CheckpointError(
            f"{path} is not an LGViT checkpoint: expected a file of `lgvit-edge train` or an "
            "authors' directory. A backbone without exits is where training starts; run: "
            f"lgvit-edge train --backbone {stored.source or path} --data DIR --out model.pt"
        )
    config = _own_config(stored.header, path)
    if use_ema:
        raise CheckpointError(
            f"{path}: expected a moving average, found a file of lgvit-edge train, which holds one "
            "model; leave --use-ema out (in Python: use_ema=False)"
        )
    if not weights.is_state(state):
        raise CheckpointError(
            f"{path}: expected a state dict of tensors under 'state', found other content; run "
            "lgvit-edge train again, or save_checkpoint in Python"
        )
    return weights.fitted(
        config, state, lambda model: {n: weights.Source((n,)) for n in model.state_dict()}, path
    )


def _backbone(
    stored: Stored,
    arch: str | None,
    num_heads: int | None,
    classes: int | None,
    use_ema: bool,
    note: Note,
) -> LGViT:
    path = stored.path
    if stored.header is not None:
        raise CheckpointError(
            f"{path}: expected a plain backbone, found a file of lgvit-edge train; load it with "
            "load_checkpoint or load_model"
        )
    state = stored.model_weights(use_ema, note)
    if stored.config and "architecture" not in stored.config:  # only timm writes that key
        _refuse_heads(num_heads, path)
        return huggingface.backbone(stored.config, state, path, classes, note)
    if any(name.startswith(("embeddings.", *huggingface.prefixes())) for name in state):
        raise CheckpointError(
            f"{path} is named as Hugging Face does, which needs config.json: give the folder that "
            "holds both, or make one, in Python: model.save_pretrained(FOLDER)"
        )
    try:
        raw, state = state, plain(state, classes, note)
        hints = Hints(
            *(arch, num_heads, stored.config, "" if path.is_dir() else path.stem),
            structure=structure(raw),
            eva=named_as_eva(raw),
            fresh=not any(name.startswith("head") for name in raw),
        )
        config = timm_config(state, hints, note)
        state = tabled(arranged(state, config), config, hints)
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from None
    except (IndexError, TypeError, ValueError) as error:  # sizes read off tensors of another rank
        raise CheckpointError(f"{path}: its tensors are not those of a ViT ({error})") from None
    return weights.fitted(config, state, lambda model: timm_names(model, state), path)


def _refuse_heads(num_heads: int | None, path: Path) -> None:
    if num_heads is not None:
        raise CheckpointError(
            f"{path} tells its attention heads: leave --num-heads out (in Python: num_heads=)"
        )


def _own_header(metadata: dict[str, str]) -> Any:
    """Returns the header of one of our ``.safetensors`` files; None for a file of others."""
    text = metadata.get(_FORMAT)
    try:
        return None if text is None else finite_json.loads(text)
    except ValueError:
        return text


def _own_config(header: Any, path: Path) -> LGViTConfig:
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path}: expected the header of lgvit-edge, found {str(header)[:60]!r}; run "
            "lgvit-edge train again, or save_checkpoint in Python"
        )
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
