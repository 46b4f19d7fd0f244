"""What timm's published names tell that weights do not; written by ``tools/timm_names.py``.

``timm_names.json`` holds facts of timm: how each architecture is built, and the preprocessing with
which each of its published weights was trained.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

# By width, depth and whether the class token is read; not in timm.
_UNLISTED = {(384, 12, True): 12}  # MoCo v3's ViT-S, otherwise like DeiT-S


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
    weights: Mapping[str, Mapping[str, Any]]  # preprocessing and classes, by the name of weights


@functools.cache
def _table() -> dict[str, Published]:
    text = resources.files(__package__).joinpath("timm_names.json").read_text(encoding="utf-8")
    return {name: Published(name=name, **row) for name, row in json.loads(text).items()}


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


def heads_of(width: int, depth: int, token: bool) -> set[int]:
    """Returns how many attention heads published ViTs of these sizes have.

    ``token`` says whether they classify the class token: I-JEPA's ViT-B, which does not, has 16.
    """
    wanted = (width, depth, token)
    rows = [row for row in _table().values() if row.block == "Block" and row.norm == "LayerNorm"]
    heads = {
        row.num_heads for row in rows if (row.width, row.depth, row.pooling == "token") == wanted
    }
    return heads | ({_UNLISTED[wanted]} if wanted in _UNLISTED else set())
