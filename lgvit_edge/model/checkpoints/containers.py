"""Finds the weights of one model in what a training program kept together.

A checkpoint may hold them under a key beside an optimiser's state, under names with a prefix, and
more than once: the trained model and its moving average. What is taken is always said, and nothing
is chosen between models that may answer differently.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from lgvit_edge.errors import CheckpointError
from lgvit_edge.model.checkpoints.formats import MERGE, STATE_DICT
from lgvit_edge.model.checkpoints.huggingface import prefixes
from lgvit_edge.model.checkpoints.pickles import stands_for
from lgvit_edge.model.checkpoints.weights import State, is_state, odd_kind

Note = Callable[[str], None]
note_in_log: Note = logging.getLogger("lgvit_edge").warning
_DEPTH = 5  # of dicts in dicts
# Parts of names that wrappers of modules add: torch.compile, FSDP, activation checkpointing.
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_COUNTED = re.compile(r"(^|\.)total_(ops|params)$")  # buffers that thop leaves behind
# Keys and prefixes of a moving average; in DINO and its kin the teacher is one.
_AVERAGED = re.compile(
    r"(?<![a-z])(ema|swa)(?![a-z])|EMA|Ema(?![a-z])|averag|shadow|momentum|teacher"
)
_NO_MODEL = re.compile(r"^optim|^opt$|^grad")  # keys under which tensors have the model's names
_ADAPTERS = re.compile(r"\.(lora_[AB]|lora_embedding_[AB]|base_layer|modules_to_save)\.")
# MMPretrain's names of a ViT, and timm's.
_MMPRETRAIN = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^layers\.(\d+)\.ln([12])\.", r"blocks.\1.norm\2."),
    (r"^layers\.(\d+)\.ffn\.layers\.0\.0\.", r"blocks.\1.mlp.fc1."),
    (r"^layers\.(\d+)\.ffn\.layers\.1\.", r"blocks.\1.mlp.fc2."),
    (r"^layers\.(\d+)\.", r"blocks.\1."),
    (r"^ln1\.", "norm."),
    (r"^head\.layers\.(head|head_dist)\.", r"\1."),
)


@dataclass(frozen=True)
class _Model:
    """One model in a checkpoint."""

    place: tuple[str, ...]  # the keys that lead to it
    prefix: str  # of its names there
    averaged: bool
    state: State  # under its own names
    aside: tuple[str, ...]  # what lies beside it in the same dict

    def __str__(self) -> str:
        place = " / ".join(repr(key) for key in self.place)
        if not self.prefix:
            return f"under {place}" if place else "without a prefix"
        return f"with the prefix {self.prefix!r}" + (f" under {place}" if place else "")

    @property
    def kind(self) -> str:
        """Returns what it is called where there is another beside it."""
        if not self.averaged:
            return "trained weights"
        return "teacher" if "teacher" in " ".join((*self.place, self.prefix)) else "moving average"

    def resembles(self, others: list[_Model]) -> bool:
        """Says whether another has the same names and shapes, as an average has."""
        shapes = {name: tensor.shape for name, tensor in self.state.items()}
        return any(
            shapes == {name: tensor.shape for name, tensor in other.state.items()}
            for other in others
        )


def weights_in(content: Any, path: Path, *, use_ema: bool, note: Note) -> State:
    """Returns the weights of the one model that ``content`` holds, under its own names.

    Where the trained model and its moving average lie side by side, ``use_ema`` takes the average,
    and the trained model is taken without it. ``note`` is told what was taken and what was not.

    Raises:
        CheckpointError: there is no model, or several, or its tensors are not plain ones.
    """
    odd: list[str] = []
    models = list(_models(content, (), {}, path, odd))
    if not models:
        if odd:
            raise CheckpointError(f"{path}: expected tensors, found {odd[0]}; {STATE_DICT}")
        if use_ema or not (is_state(content) and content):
            raise CheckpointError(f"{path}: {_nothing(content)}")
        return dict(dict.items(content))  # the reader of these names says what is missing
    models = _named_as_saved(models, content)
    trained = _distinct([model for model in models if not model.averaged])
    averages = _distinct([model for model in models if model.averaged])
    unlike = [model for model in averages if trained and not model.resembles(trained)]
    averages = [model for model in averages if model not in unlike]
    if use_ema and not averages:
        raise CheckpointError(
            f"{path}: expected the trained weights and their moving average, under a key such as "
            f"'model_ema', found a model {_listed(models)}; leave --use-ema out (in Python: "
            "use_ema=False)"
        )
    chosen, others = (averages, trained) if use_ema or not trained else (trained, averages)
    if len(chosen) > 1:
        raise CheckpointError(
            f"{path}: expected one model, found several: {_listed(chosen)}; save the state dict of "
            "the one you mean alone, with torch.save"
        )
    model = chosen[0]
    state = _own_tensors(model, path)
    if said := _account(model, others, unlike, content):
        note(f"{path}: {said}")
    return state


def _models(
    value: object, place: tuple[str, ...], seen: dict[int, object], path: Path, odd: list[str]
) -> Iterator[_Model]:
    """Yields the models in dicts in dicts; ``seen`` ends circles, ``odd`` gets other values."""
    if not isinstance(value, dict) or len(place) > _DEPTH or id(value) in seen:
        return
    seen[id(value)] = value
    # Not value.items(): a pickle may hide the methods of its OrderedDicts behind other values.
    items = list(dict.items(value))
    names = {key: _WRAPPERS.sub("", key) for key, _ in items if isinstance(key, str)}
    found = {key: match[1] for key, name in names.items() if (match := _anchor().fullmatch(name))}
    for key, prefix in found.items():
        if isinstance(entry := dict.get(value, key), Tensor):
            others = tuple(other for other in found.values() if other != prefix)
            yield _model(place, prefix, others, items, names, path)
        else:
            odd.append(f"{_kind(entry)} as {_label(key)}")
    for key, entry in items:
        if not _NO_MODEL.search(label := _label(key)):
            yield from _models(entry, (*place, label), seen, path, odd)


def _anchor() -> re.Pattern[str]:
    """Returns the pattern of the one name that each ViT, DeiT and Swin has, with any prefix."""
    families = "|".join(map(re.escape, prefixes()))
    return re.compile(
        r"((?:.*?\.)??)(?:patch_embed\.proj(?:ection)?"
        rf"|(?:{families})?embeddings\.patch_embedding(?:s(?:\.projection)?)?)\.weight"
    )


def _model(
    place: tuple[str, ...],
    prefix: str,
    others: tuple[str, ...],
    items: list[tuple[Any, Any]],
    names: dict[str, str],
    path: Path,
) -> _Model:
    """Returns the model whose names begin with ``prefix``; ``others`` are those of other models."""
    state: State = {}
    aside = []
    inner = tuple(other for other in others if other.startswith(prefix))
    theirs = prefix + "patch_embed.projection.weight" in names.values()
    for key, entry in items:
        name = names.get(key) if isinstance(key, str) else None
        if name is not None and theirs:
            name = _timm_name(name, prefix, path)
        elif name is not None:
            name = name.removeprefix(prefix) if name.startswith(prefix) else None
        if isinstance(key, str) and names[key].startswith(others if name is None else inner):
            continue  # another model's
        if name is None or not isinstance(entry, Tensor) or _COUNTED.search(name):
            aside.append(_label(key))
        elif name in state:
            raise CheckpointError(
                f"{path}: expected each weight once, found {name} twice, once as {key}; "
                f"{STATE_DICT}"
            )
        else:
            state[name] = torch.Tensor.detach(entry)
    averaged = any(_AVERAGED.search(part) for part in (*place, prefix))
    return _Model(place, prefix, averaged, state, tuple(aside))


def _timm_name(name: str, prefix: str, path: Path) -> str | None:
    """Returns timm's name for MMPretrain's, whose classifier lies beside the backbone."""
    beside = prefix.removesuffix("backbone.") + "head."
    if name.startswith(prefix):
        name = name.removeprefix(prefix)
    elif prefix.endswith("backbone.") and name.startswith(beside):
        name = "head." + name.removeprefix(beside)
    else:
        return None
    if name.startswith("stages."):
        raise CheckpointError(
            f"{path} is a Swin of MMPretrain, which merges patches in another order; expected the "
            "names of timm or Hugging Face; give the Swin of its authors, timm or Hugging Face"
        )
    for pattern, ours in _MMPRETRAIN:
        name = re.sub(pattern, ours, name)
    return name


def _named_as_saved(models: list[_Model], content: dict[Any, Any]) -> list[_Model]:
    """Corrects which is the average: two trainers keep it under the usual key of the model."""
    if "current_model_state" in content:  # Lightning's WeightAveraging
        averages = {"state_dict": True, "current_model_state": False}
    elif "message_hub" in content and "ema_state_dict" in content:  # MMEngine's EMAHook
        averages = {"state_dict": True, "ema_state_dict": False}
    else:
        return models
    return [
        replace(model, averaged=averages.get(model.place[0], model.averaged))
        if model.place
        else model
        for model in models
    ]


def _distinct(models: list[_Model]) -> list[_Model]:
    """Returns the models without those that equal an earlier one: a module may have two names."""
    kept: list[_Model] = []
    for model in models:
        if not any(_same(model.state, other.state) for other in kept):
            kept.append(model)
    return kept


def _same(one: State, two: State) -> bool:
    return one.keys() == two.keys() and all(
        not odd_kind(a) and not odd_kind(b) and a.dtype == b.dtype and torch.equal(a, b)
        for a, b in ((one[name], two[name]) for name in one)
    )


def _own_tensors(model: _Model, path: Path) -> State:
    """Returns the tensors without what else their storages hold; refuses what is no plain one."""
    state = {}
    for name, tensor in model.state.items():
        if _ADAPTERS.search(name):
            raise CheckpointError(
                f"{path}: expected whole weights, found an adapter of PEFT ({name}); {MERGE}"
            )
        if kind := odd_kind(tensor):
            raise CheckpointError(
                f"{path}: {name} is {kind}, expected a dense tensor; save the model's weights "
                "dense, not quantised and on the CPU"
            )
        part = tensor.numel() * tensor.element_size() < tensor.untyped_storage().nbytes()
        state[name] = tensor.clone() if part else tensor
    return state


def _account(
    model: _Model, others: list[_Model], unlike: list[_Model], content: dict[Any, Any]
) -> str:
    """Returns what was taken and what was not; nothing for a plain state dict."""
    places = {other.place[:1] for other in (model, *others, *unlike)}
    beside = [_label(key) for key in content if (_label(key),) not in places]
    if not model.place:
        beside = []
    aside = [*beside, *model.aside]
    if not (model.place or model.prefix or others or unlike or aside):
        return ""
    what = model.kind if others or model.averaged else "weights"
    parts = [f"took the {what} {model}"]
    if others:
        parts.append(f"not the {others[0].kind} {_listed(others)}")
    if others and not model.averaged:
        parts[-1] += ", which --use-ema takes (in Python: use_ema=True)"
    if unlike:
        parts.append(f"not the model of other shapes {_listed(unlike)}")
    if aside:
        parts.append(f"left aside {', '.join(aside[:6])}" + (", ..." if len(aside) > 6 else ""))
    return "; ".join(parts)


def _listed(models: list[_Model]) -> str:
    return " and ".join(map(str, models[:4])) + (" and more" if len(models) > 4 else "")


def _nothing(content: object) -> str:
    """Returns what was found instead of a model."""
    expected = "expected a state dict of tensors with the names of a ViT, DeiT or Swin, found"
    if isinstance(content, dict) and not stands_for(content):
        entries = dict(dict.items(content))
        whole = [key for key, entry in entries.items() if _is_module(entry)]
        if whole:
            return f"{expected} {_kind(entries[whole[0]])} under {whole[0]!r}; {STATE_DICT}"
        keys = ", ".join(_label(key) for key in list(entries)[:6]) or "nothing"
        return f"{expected} {keys}{', ...' if len(entries) > 6 else ''}; {STATE_DICT}"
    return f"{expected} {_kind(content)}; {STATE_DICT}"


def _label(key: object) -> str:
    """Returns a key of a dict for messages."""
    return str(key)[:60] if isinstance(key, (str, int, float, NoneType)) else _kind(key)


def _is_module(entry: object) -> bool:
    return stands_for(entry) is not None and "_modules" in getattr(entry, "__dict__", {})


def _kind(value: object) -> str:
    name = stands_for(value)
    if name is None:
        return f"a {type(value).__name__}"
    return f"a whole model ({name})" if _is_module(value) else f"an object of {name}"
