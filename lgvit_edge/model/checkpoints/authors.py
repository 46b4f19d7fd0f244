"""Reads the authors' LGViT directories: ``config.json`` and their names of weights.

Nothing is evaluated: the authors' strings such as "[4,5,6]" are parsed as JSON.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from lgvit_edge._support import finite_json
from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.architecture.families import FAMILIES
from lgvit_edge.architecture.heads import HEAD_KINDS
from lgvit_edge.errors import CheckpointError, ConfigError
from lgvit_edge.model.checkpoints.huggingface import (
    huggingface_names,
    short,
    transformer,
    whole_numbers,
    wrong_config,
)
from lgvit_edge.model.checkpoints.weights import Source, State, places, sources_of
from lgvit_edge.model.heads import ExitHead, Names, within
from lgvit_edge.model.lgvit import LGViT

_FAMILIES = {"ViT": "vit", "DeiT": "deit", None: "swin"}  # by the authors' `backbone`
# The heads of the authors' "LGViT" by number of exits; other names mean one head at all exits.
_LGVIT = {
    2: ("conv1_1", "attention_r2"),
    4: ("conv1_1", "conv2_1", "attention_r2", "attention_r3"),
    6: ("conv1_1", "conv2_1", "attention_r2", "attention_r2", "attention_r3", "attention_r3"),
    8: ("conv1_1",) * 2 + ("conv2_1",) * 2 + ("attention_r2",) * 2 + ("attention_r3",) * 2,
}
# The same for a Swin, by stage: heads in the order of the stage's exits.
_LGVIT_SWIN = {
    1: ("conv1_1",) * 18,
    2: ("conv1_1", "conv2_1", "conv2_1", "attention_r1", "attention_r1", "attention_r2"),
    3: ("attention_r2",),
}
_SWIN_TYPES = ("LGViT", "linear", "vit")
_LAYERS = "swin.encoder.layers"


def authors_config(raw: dict[str, Any], state: State) -> LGViTConfig:
    """Returns the configuration in the authors' ``config.json`` of an LGViT.

    Shapes in ``state`` tell the width of an encoder head.

    Raises:
        CheckpointError: not such a file, or one that contradicts itself.
    """
    kind, model_type = raw.get("backbone"), raw.get("model_type")
    supported = isinstance(kind, str | None) and kind in _FAMILIES
    if not supported or (kind is None) != (model_type == "swin"):
        raise CheckpointError(
            'expected an LGViT config.json with backbone "ViT" or "DeiT", or model_type "swin" and '
            f"no backbone; found backbone {short(kind)}, model_type {short(model_type)}"
        )
    try:
        family = FAMILIES[_FAMILIES[kind]]
        config = transformer(raw | {"model_type": family.name}, family)
        if config.depths:
            exits = _swin_exits(raw, config, state)
        else:
            blocks = _list(raw, "position_exits", "[4,5,6]")
            if raw.get("num_early_exits", len(blocks)) != len(blocks):
                raise ConfigError(_miscounted(raw["num_early_exits"], blocks))
            highway = raw.get("highway_type")
            names = _LGVIT.get(len(blocks)) if highway == "LGViT" else None
            pairs = zip(blocks, names or [highway] * len(blocks), strict=True)
            exits = [_exit(block, name) for block, name in pairs]
        return config.replace(exits=tuple(exits))
    except ConfigError as error:
        raise wrong_config(error) from None


def _list(raw: dict[str, Any], name: str, example: str) -> list[Any]:
    """Returns a list like ``example``; the authors wrote it as a string, never evaluated."""
    value = raw.get(name)
    if isinstance(value, str):
        try:
            value = finite_json.loads(value)
        except ValueError:
            pass  # reported below
    rows = value if isinstance(value, list) else [None]
    if not (all(map(whole_numbers, rows)) if example.startswith("[[") else whole_numbers(value)):
        raise ConfigError(f'{name} must be a list such as "{example}", found {short(value)}')
    return rows


def _miscounted(count: object, positions: list[Any]) -> str:
    return f"num_early_exits {short(count)} but position_exits {short(positions)}"


def _swin_exits(raw: dict[str, Any], config: LGViTConfig, state: State) -> list[ExitConfig]:
    """Returns a Swin's exits, whose positions count from the start of their stage."""
    stages, highway = _list(raw, "position_exits", "[[],[2],[3,6],[1]]"), raw.get("highway_type")
    if len(stages) != len(config.depths):
        raise ConfigError(
            f"position_exits of a swin must be one list per stage, {len(config.depths)} of them, "
            f"found {short(stages)}"
        )
    if highway not in _SWIN_TYPES:
        raise ConfigError(
            f"highway_type of a swin must be one of {', '.join(_SWIN_TYPES)}, found "
            f"{short(highway)}"
        )
    counts = _list(raw, "num_early_exits", "[0,1,2,1]") if "num_early_exits" in raw else None
    if counts not in (None, [len(stage) for stage in stages]):
        raise ConfigError(_miscounted(counts, stages))
    exits, before = [], 0
    for stage, (positions, depth) in enumerate(zip(stages, config.depths, strict=True)):
        if not all(1 <= place <= depth for place in positions):
            raise ConfigError(
                f"position_exits of stage {stage + 1} must lie in its blocks 1..{depth}, found "
                f"{short(positions)}"
            )
        names: tuple[object, ...] = (highway,) * len(positions)
        if highway == "LGViT":
            names = _LGVIT_SWIN.get(stage, ())[: len(positions)]
        if len(names) < len(positions):
            raise ConfigError(
                f"the authors' LGViT has {len(_LGVIT_SWIN.get(stage, ()))} exits at most in stage "
                f"{stage + 1}, found {len(positions)}"
            )
        for k, (place, name) in enumerate(zip(positions, names, strict=True)):
            exit = _exit(before + place, name)
            # The authors' encoder here is a DeiT's, 3072 wide whatever the stage.
            bias = state.get(f"{_LAYERS}.{stage}.highway.{k}.layer.intermediate.dense.bias")
            if name == "vit" and bias is not None:
                exit = dataclasses.replace(exit, size=bias.numel())
            exits.append(exit)
        before += depth
    return exits


def _exit(block: int, name: object) -> ExitConfig:
    kinds = {theirs: kind for kind in HEAD_KINDS.values() for theirs in kind.authors}
    if isinstance(name, str) and name in kinds:
        return ExitConfig(block, kinds[name].name, kinds[name].authors[name])
    raise ConfigError(
        f"highway_type {short(name)} is not supported; expected LGViT (2, 4, 6 or 8 exits), "
        f"{', '.join(kinds)}"
    )


def attached(state: State, raw: dict[str, Any], config: LGViTConfig) -> State:
    """Returns the weights without surplus heads; a Swin's third stage always has six."""
    if not config.depths or raw.get("highway_type") != "LGViT" or len(config.depths) < 3:
        return state
    first, end = sum(config.depths[:2]), sum(config.depths[:3])
    count = sum(first < exit.block <= end for exit in config.exits)
    surplus = tuple(f"{_LAYERS}.2.highway.{k}." for k in range(count, len(_LGVIT_SWIN[2])))
    return {name: tensor for name, tensor in state.items() if not name.startswith(surplus)}


def authors_names(model: LGViT) -> dict[str, Source]:
    """Returns where each of our parameters is in the authors' LGViT."""
    config = model.config
    prefix = "swin" if config.depths else "deit"
    names: Names = {}
    counts = [0] * len(config.depths)
    for k, (exit, head) in enumerate(zip(config.exits, model.heads, strict=True)):
        assert isinstance(head, ExitHead)
        theirs = f"{prefix}.encoder.highway.{k}"
        if config.depths:  # numbered anew in each stage
            stage = places(config)[exit.block - 1][0]
            theirs = f"{prefix}.encoder.layers.{stage}.highway.{counts[stage]}"
            counts[stage] += 1
        names |= within(f"heads.{k}", head.authors(), theirs)
    return huggingface_names(model, prefix) | sources_of(model, names, [])
