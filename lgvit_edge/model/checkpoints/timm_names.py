"""What timm's published names tell that weights do not; written by ``tools/timm_names.py``.

``timm_names.json`` holds facts of timm: how each architecture is built, and the preprocessing with
which each of its published weights was trained. ``timm_top1.json`` holds the accuracy of weights on
ImageNet-1k, 0..1, as timm publishes it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

# Not in timm: attention heads of an architecture that is otherwise like a listed one.
_UNLISTED_HEADS = {"vit_small_patch16_224": 12}  # MoCo v3's ViT-S


@dataclass(frozen=True)
class Published:
    """How timm builds an architecture, by the names of its classes and options."""

    name: str
    width: int
    depth: int
    num_heads: int
    block: str
    attention: str
    mlp: str
    norm: str
    eps: float
    activation: str
    pooling: str
    rotation: Mapping[str, Any] | None  # of its RoPE
    structure: str  # as ``structure`` returns it
    weights: Mapping[str, Mapping[str, Any]]  # preprocessing and classes, by the name of weights
    # Of a Swin V2: the side of its windows, and in each stage of those that it was trained with
    # before; 0: of its own.
    window: int = 0
    pretrained_windows: tuple[int, ...] = ()


@functools.cache
def _table() -> dict[str, Published]:
    return {name: Published(name=name, **row) for name, row in _facts("timm_names.json").items()}


def _facts(file: str) -> dict[str, Any]:
    text = resources.files(__package__).joinpath(file).read_text(encoding="utf-8")
    return dict(json.loads(text))


def published_accuracy(text: str) -> float | None:
    """Returns the accuracy, 0..1, of the published weights that a name begins with; else None.

    Of an architecture alone, the least accurate ones count.
    """
    top1, name = _facts("timm_top1.json"), named_in(text)
    exact = [share for full, share in top1.items() if text.startswith(full)]
    found = exact or [share for full, share in top1.items() if full.partition(".")[0] == name]
    return min(found, default=None)


def published_names() -> list[str]:
    """Returns the names of all architectures that are known, sorted."""
    return sorted(_table())


def published(name: str) -> Published | None:
    """Returns the architecture of this name, which may end in that of weights; else None."""
    return _table().get(name.partition(".")[0])


def named_in(stem: str) -> str:
    """Returns the name that a file's name begins with, or nothing.

    ``deit_tiny_patch16_224-a1311bcf`` begins with ``deit_tiny_patch16_224``.
    """
    names = (n for n in _table() if re.match(rf"{re.escape(n)}(?![A-Za-z0-9])", stem))
    return max(names, key=len, default="")


def weights_named(row: Published, text: str) -> Mapping[str, Mapping[str, Any]]:
    """Returns those of an architecture's weights that a name such as ``name.weights`` means."""
    exact = {tag: about for tag, about in row.weights.items() if text == f"{row.name}.{tag}"}
    return exact or row.weights


def structure(names: Iterable[str]) -> str:
    """Returns a hash of the names of a ViT's weights, outside its final norm and classifier.

    One block stands for all. Weights of equal sizes and structure may still be computed otherwise.
    """
    parts = {
        name
        for name in names
        if re.match(r"blocks\.0\.|(?!blocks\.|head|fc_norm\.|norm\.|mask_token)", name)
    }
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()[:12]


def twins(width: int, depth: int, built: str) -> list[Published]:
    """Returns the architectures whose weights have these sizes and this ``structure``."""
    wanted = (width, depth, built)
    rows = [r for r in _table().values() if (r.width, r.depth, r.structure) == wanted]
    unlisted = [
        dataclasses.replace(row, num_heads=_UNLISTED_HEADS[row.name])
        for row in rows
        if row.name in _UNLISTED_HEADS
    ]
    return rows + unlisted
