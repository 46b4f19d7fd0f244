"""The registry of exit heads, each kind described by one ``HeadKind``.

A new kind is one ``HeadKind`` here and the module its factory names; ``register_head`` takes one
from outside the package. Nothing here imports PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lgvit_edge.architecture.families import Family
from lgvit_edge.architecture.sizes import BlockConfig
from lgvit_edge.errors import ConfigError

GAH_HEADS = 8  # attention heads of every GAH, as the authors chose
ROLES = ("local", "global")
_RESERVED = ("lgvit", "final")  # the paper's mix of kinds; the last segment's classifier


@dataclass(frozen=True)
class HeadKind:
    """Describes a kind of exit head: its name, its size and where its code is.

    Attributes:
        name: as in configurations and commands.
        help: what it is, in a few words.
        factory: ``(LGViTConfig, ExitConfig) -> ExitHead``, or its ``module:function``.
        size: name of its size, such as ``kernel``; empty if it has none.
        default: size of every exit if a user names only the kind; None if no size suits all exits,
            so that only the paper's mix can choose it.
        fault: returns what is wrong with a size after a block in a family, or None.
        role: in distillation (paper section 3.4): ``local`` features are compared one by one,
            ``global`` ones by F^T F, those of kinds without a role not at all.
        stride: tokens between two features along each side of the map, by size.
        authors: the authors' names of it, each with its size.
    """

    name: str
    help: str
    factory: str | Callable[..., Any]
    size: str = ""
    default: int | None = 0
    fault: Callable[[int, BlockConfig, Family], str | None] = lambda size, block, family: None
    role: str = ""
    stride: Callable[[int], int] = lambda size: 1
    authors: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name in _RESERVED:
            raise ConfigError(
                f"a kind of head needs a name of one word that is not {' or '.join(_RESERVED)}, "
                f"found {self.name!r}"
            )
        if self.role not in ("", *ROLES):
            raise ConfigError(f"role must be empty or {' or '.join(ROLES)}, found {self.role!r}")
        if self.default and not self.size:
            raise ConfigError(f"{self.name} has no size, found the default {self.default}")


HEAD_KINDS: dict[str, HeadKind] = {}


def register_head(kind: HeadKind) -> None:
    """Adds a kind of head to configurations, commands, export and training.

    Raises:
        ConfigError: its name is taken.
    """
    if kind.name in HEAD_KINDS:
        raise ConfigError(f"there is a kind of head {kind.name!r} already")
    HEAD_KINDS[kind.name] = kind


def head_choices() -> dict[str, str]:
    """Returns the names that ``--heads`` accepts, each with its help text."""
    kinds = {k.name: k.help for k in HEAD_KINDS.values() if k.default is not None}
    return {"lgvit": "local, then global heads", **kinds}


def _attention(heads: int, block: BlockConfig) -> str | None:
    fault = f"it has {heads} attention heads, and width {block.dim} is no multiple of {heads}"
    return fault if heads and block.dim % heads else None


def _lph(size: int, block: BlockConfig, family: Family) -> str | None:
    if (size == 0 or size % 2) and size <= 2 * block.grid:
        return None
    return f"its kernel must be 0 or odd, and at most {2 * block.grid} on {_map(block)}, not {size}"


def _gah(size: int, block: BlockConfig, family: Family) -> str | None:
    if not 1 <= size <= block.grid:
        return f"its window must be 1..{block.grid} on {_map(block)}, not {size}"
    return _attention(GAH_HEADS, block)


def _map(block: BlockConfig) -> str:
    return f"{block.grid} x {block.grid} tokens"


for _kind in (
    HeadKind(
        "lph",
        "local perception, paper Eqs. 1 and 2",
        "lgvit_edge.model.heads.lph:head",
        size="kernel",
        default=None,
        fault=_lph,
        role="local",
        authors={"conv1_1": 3, "conv2_1": 0},
    ),
    HeadKind(
        "gah",
        "global aggregation, paper Eqs. 3 and 4",
        "lgvit_edge.model.heads.gah:head",
        size="window",
        default=None,
        fault=_gah,
        role="global",
        stride=lambda size: size,
        authors={f"attention_r{size}": size for size in range(1, 10)},
    ),
    HeadKind(
        "mlp",
        "the form of the final classifier",
        "lgvit_edge.model.heads.mlp:head",
        authors={"linear": 0},
    ),
    HeadKind(
        "conv", "a 3x3 convolution", "lgvit_edge.model.heads.conv:head", authors={"conv_normal": 0}
    ),
    HeadKind(
        "attention",
        "self-attention over all patches",
        "lgvit_edge.model.heads.attention:head",
        authors={"self_attention": 0},
    ),
    # Width 0: as wide as the block before it.
    HeadKind(
        "encoder",
        "one more encoder block, then mlp",
        "lgvit_edge.model.heads.encoder:head",
        size="width",
        fault=lambda size, block, family: _attention(family.encoder_heads, block),
        authors={"vit": 0},
    ),
):
    register_head(_kind)
