"""Configures timm's backbones: what names and shapes of weights tell, and what hints must say."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.architecture.families import FAMILIES
from lgvit_edge.architecture.published import architecture, architectures
from lgvit_edge.architecture.sizes import ACTIVATIONS, activation_named
from lgvit_edge.bundle.codec import from_json
from lgvit_edge.errors import CheckpointError, ConfigError, UnknownHeadsError
from lgvit_edge.images.spec import Preprocess
from lgvit_edge.model.checkpoints import swinv2
from lgvit_edge.model.checkpoints.containers import Note, note_in_log
from lgvit_edge.model.checkpoints.timm_names import (
    Published,
    named_in,
    published,
    twins,
    weights_named,
)
from lgvit_edge.model.checkpoints.timm_weights import BIAS, count_parts, count_tokens, head_name
from lgvit_edge.model.checkpoints.weights import State, places

_TABLE = "layers.0.blocks.0.attn.relative_position_bias_table"  # every Swin has it
_SCALES = "layers.0.blocks.0.attn.logit_scale"  # every Swin V2
_COORDINATES = "layers.0.blocks.0.attn.relative_coords_table"  # its authors' files have it
_SWIN_BLOCKS = ("SwinTransformerBlock", "SwinTransformerV2Block")
_POOLINGS = {"token": "token", "avg": "mean", "map": "attention"}
# timm's settings of the rotary positions that are ours.
_ROTATIONS = {
    "eva": {
        **{"class": "RotaryEmbeddingCat", "temperature": 10_000, "rotate_half": False},
        **{"grid_offset": 0, "grid_indexing": "ij"},
    },
    "dinov3": {
        **{"class": "RotaryEmbeddingDinoV3", "temperature": 100, "rotate_half": True},
        **{"grid_offset": 0, "grid_indexing": "ij"},
    },
}
_ROTATION_CLASSES = {"cat": "RotaryEmbeddingCat", "dinov3": "RotaryEmbeddingDinoV3"}
_ROTATION_ARGUMENTS = {
    **{name: f"rope_{name}" for name in ("temperature", "rotate_half", "grid_offset")},
    **{"grid_indexing": "rope_grid_indexing", "ref_feat_shape": "ref_feat_shape"},
}
_NUMBER, _SIDES = "a whole number", "a whole number or two"
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **{name: (_NUMBER, lambda value: _is_whole(value)) for name in ("embed_dim", "depth")},
    **{
        name: (_SIDES, lambda value: _is_whole(value) or _are_whole(value))
        for name in ("img_size", "patch_size", "ref_feat_shape", "num_heads")
    },
    **{
        name: ("text", lambda value: isinstance(value, str))
        for name in ("global_pool", "act_layer", "rope_type", "rope_grid_indexing")
    },
    **{
        name: ("a number", lambda value: type(value) in (int, float))
        for name in ("rope_temperature", "rope_grid_offset")
    },
}
# Arguments of timm's models that are read, or that weights tell, or that only matter in training.
# Others may only have a default: what they change would not be seen.
_ARGUMENTS = re.compile(
    r"img_size|strict_img_size|dynamic_img_(size|pad)|patch_size|in_chans|num_classes|global_pool"
    r"|embed_dim|depths?|num_heads|mlp_ratio|window_size|pretrained_window_sizes|qkv_(bias|fused)"
    r"|qk_norm|scale_(attn_norm|mlp_norm|mlp|attn_inner)|proj_bias|init_values|act_layer"
    r"|class_token|no_embed_class|(num_)?reg_tokens|pre_norm|final_norm|fc_norm|swiglu_(mlp|align_to)"
    r"|use_(abs_pos_emb|rot_pos_emb|rel_pos_bias|shared_rel_pos_bias|fc_norm)"
    r"|use_(pre|post)_transformer_norm|ref_feat_shape|rope_\w+|\w*drop\w*|\w*init\w*"
)
_DEFAULTS = {"pos_embed": "learn", "attn_type": "eva"}
# What timm calls the modules that we have.
_CLASSES = {
    *("Block", *_SWIN_BLOCKS, "Attention", "WindowAttention"),
    *("Mlp", "GluMlp", "LayerNorm", "EvaBlock", "EvaAttention", "SwiGLU"),
}


@dataclass(frozen=True)
class Hints:
    """Holds what a user, a file's name and timm's own ``config.json`` tell of weights."""

    arch: str | None = None  # one of ``architectures()``, or a name of timm's
    num_heads: int | None = None
    written: Mapping[str, Any] = field(default_factory=dict)  # config.json
    stem: str = ""  # the file's name
    structure: str = ""  # of the weights' names, as ``timm_names.structure`` returns it
    eva: bool = False  # whether the weights have EVA's names, so that rotary positions are likely
    fresh: bool = False  # whether the classifier is a new one

    @property
    def name(self) -> str:
        """Returns timm's name of the architecture, or nothing."""
        if self.arch is not None:
            return "" if self.arch in architectures() else self.arch
        return str(self.written.get("architecture") or named_in(self.stem))

    @property
    def text(self) -> str:
        """Returns that name, with the name of weights after it where one is given."""
        return self.arch or self.stem or self.name

    def setting(self, name: str) -> Any:
        """Returns what ``config.json`` says of an argument of the model, or None."""
        arguments, cfg = self.written.get("model_args"), self.written.get("pretrained_cfg")
        for place in (arguments, self.written, cfg):
            if isinstance(place, dict) and place.get(name) is not None:
                return place[name]
        return None


def timm_config(state: State, hints: Hints, note: Note = note_in_log) -> LGViTConfig:
    """Returns the configuration of timm's weights, ``state`` being as ``plain`` returns it.

    Names and shapes tell most of it. Attention heads, activation, pooling, eps and preprocessing
    are those that ``hints`` say, or that the published architecture of that name has. What is
    assumed is told to ``note``; what would change answers is asked for.

    Raises:
        CheckpointError: not a timm ViT, DeiT or Swin, one that is not supported, or one that only
            a hint could explain.
    """
    swin = any(name.startswith("layers.0.blocks.") for name in state)
    if any(".attn.meta_mlp." in name for name in state):
        raise CheckpointError(
            "these weights are of swinv2_cr, timm's own variant of Swin V2, which is not "
            "supported: expected a Swin V2 of its authors, such as swinv2_tiny_window8_256"
        )
    table = _SCALES if is_swinv2(state) else _TABLE
    needed = ["patch_embed.proj.weight", *([table] if swin else []), head_name(state)]
    missing = [name for name in needed if name not in state]
    if not swin and not count_parts(state, "blocks."):
        missing.append("blocks.0")
    if missing == [head_name(state)]:
        raise CheckpointError(
            "the weights have no classifier, and stage 2 trains none; run: lgvit-edge train "
            "--order joint"
        )
    if missing:
        raise CheckpointError(
            f"expected a timm ViT, DeiT or Swin state dict, but {', '.join(missing)} is missing; "
            f"found {', '.join(sorted(state)[:4])}..."
        )
    _known_arguments(hints, state)
    row = published(hints.name)
    if hints.name and row is None and hints.arch is not None:
        raise CheckpointError(
            f"unknown architecture {hints.arch!r}; known: {', '.join(architectures())}, and timm's "
            "names of ViT, DeiT, Swin and EVA"
        )
    if row is not None:
        row = _fitting(row, state, hints, note)
    elif hints.written and hints.arch is None:
        note(f"config.json names {hints.name or 'no architecture'}, of which nothing is known")
    try:
        config = (_swin if swin else _vit)(state, hints, row, note)
        return config.replace(
            preprocess=_preprocess(hints, row, config, note), labels=_labels(hints, config)
        )
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def _fitting(row: Published, state: State, hints: Hints, note: Note) -> Published | None:
    """Returns ``row`` as far as it holds for the weights; None if they only bear its name."""
    dim, stages = len(state["patch_embed.proj.weight"]), count_parts(state, "layers.")
    depth = sum(count_parts(state, f"layers.{i}.blocks.") for i in range(stages))
    depth = depth or count_parts(state, "blocks.")
    sized = (row.width, row.depth) == (dim, depth)
    built = row.structure == hints.structure
    if stages:  # older files hold buffers, too: their structure is another
        built = row.block == _SWIN_BLOCKS[is_swinv2(state)]
    if hints.arch is not None and not sized:
        raise _other_sizes(row.name, (row.width, row.depth), (dim, depth))
    if hints.arch is not None and not built:
        raise CheckpointError(f"these weights are not those of {row.name}: it has other parts")
    if not built or (not sized and not hints.written):
        note(f"these weights are not built like {row.name}, after which they are named")
        return None
    if not sized:  # timm's own config.json may change the sizes of an architecture
        row = replace(row, num_heads=0, weights={})
    _known(row)
    return row


def _is_whole(value: object) -> bool:
    return type(value) is int and value > 0


def _are_whole(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_whole, value))


def _known_arguments(hints: Hints, state: State) -> None:
    """Refuses arguments of another kind, of unknown effect, or that the weights contradict."""
    for name, (kind, good) in _KINDS.items():
        if (value := hints.setting(name)) is not None and not good(value):
            raise CheckpointError(f"config.json: {name} must be {kind}, found {value!r:.60}")
    arguments = hints.written.get("model_args")
    if not isinstance(arguments, dict):
        return
    for name, value in arguments.items():
        if not _ARGUMENTS.fullmatch(str(name)) and value not in (None, False, _DEFAULTS.get(name)):
            raise CheckpointError(
                f"config.json sets {str(name)[:60]} of the model to {str(value)[:60]!r}, which is "
                "not supported"
            )
    blocks = count_parts(state, "blocks.")
    found = {
        "embed_dim": len(state["patch_embed.proj.weight"]),
        **({"depth": blocks} if blocks else {}),
        "qk_norm": "blocks.0.attn.q_norm.weight" in state,
    }
    for name, own in found.items():
        if arguments.get(name, own) not in (own, None):
            raise CheckpointError(
                f"config.json says {name} {arguments[name]}, the weights have {own}; give the "
                "config.json that belongs to them"
            )


def _known(row: Published) -> None:
    classes = {row.block, row.attention, row.mlp, row.norm}
    if unknown := classes - _CLASSES:
        raise CheckpointError(
            f"{row.name} is built of timm's {', '.join(sorted(unknown))}, which is not supported"
        )


def _other_sizes(name: str, wanted: tuple[int, int], found: tuple[int, int]) -> CheckpointError:
    return CheckpointError(
        f"{name} has hidden size {wanted[0]} and {wanted[1]} blocks, the weights have {found[0]} "
        f"and {found[1]}"
    )


def _vit(state: State, hints: Hints, row: Published | None, note: Note) -> LGViTConfig:
    patches, dim = state["patch_embed.proj.weight"].shape[2:], len(state["patch_embed.proj.weight"])
    if patches[0] != patches[1]:
        raise CheckpointError(f"patches must be square, found {patches[0]} x {patches[1]}")
    depth, width = count_parts(state, "blocks."), state.get("blocks.0.mlp.fc1.weight")
    tokens = count_tokens(state)
    rotation, side = _rotation(state, hints, row)
    size = _said_size(hints, row)
    if "pos_embed" in state:
        size = _side(state, tokens, _written_size(hints), patches[0]) * patches[0]
    elif BIAS in state:
        size = (round((len(state[BIAS]) - 3) ** 0.5) + 1) // 2 * patches[0]
    if "pos_embed" in state or BIAS in state:
        if (said := _written_size(hints)) not in (None, size):
            raise CheckpointError(
                f"config.json says images of {said} x {said}, but the positions are those of "
                f"{size} x {size}; correct img_size there, or give the file of weights alone"
            )
    if size is None:
        raise CheckpointError(
            "the size of images cannot be told from weights without positions: give the folder "
            "with its config.json (img_size)"
        )
    classes, distilled = len(state["head.weight"]), "head_dist.weight" in state
    pooling = _pooling(state, hints, row, tokens)
    fields: dict[str, Any] = {
        "prefix_tokens": tokens,
        "classifiers": 2 if distilled else 1,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "pooling": pooling,
        "final_norm": "pooled" if pooling == "mean" and "fc_norm.weight" in state else "tokens",
        "gated": "blocks.0.mlp.gate.weight" in state,
        "qk_norm": "blocks.0.attn.q_norm.weight" in state,
        "attention_norm": "blocks.0.attn.norm.weight" in state,
        "relative_positions": BIAS in state,
        "embedding_norm": "norm_pre.weight" in state,
        "mlp_norm": "blocks.0.mlp.norm.weight" in state,
        "rotation": rotation,
        "rotation_side": side,
    }
    if hints.arch in architectures():
        others = ("embedding_norm", "gated", "qk_norm", "attention_norm", "relative_positions")
        if hints.eva or any(fields[part] for part in others):
            raise CheckpointError(
                f"these weights are no {hints.arch}: they have parts of other ViTs; give timm's "
                "name of the architecture (--backbone NAME --weights FILE)"
            )
        named = _named(hints, dim, depth, num_classes=classes, image_size=size)
        return named.replace(**fields, num_heads=hints.num_heads or named.num_heads)
    alike = [] if row is not None or hints.written else twins(dim, depth, hints.structure)
    _one_form(alike)
    deit = "dist_token" in state or hints.name.startswith("deit")
    return LGViTConfig(
        family="deit" if deit else "vit",
        image_size=size,
        patch_size=patches[0],
        hidden_size=dim,
        num_blocks=depth,
        num_heads=_heads(state, hints, row, alike, depth),
        intermediate_size=4 * dim if width is None else len(width),
        num_classes=classes,
        activation=_activation(state, hints, row, alike, note),
        layer_norm_eps=1e-6 if row is None else row.eps,
        preprocess=Preprocess(resize=size),  # that of the weights follows
        **fields,
    )


def _named(hints: Hints, dim: int, depth: int, **sizes: int) -> LGViTConfig:
    """Returns our architecture of this name, which must have the weights' sizes."""
    assert hints.arch is not None
    named = architecture(hints.arch, **sizes)
    if (named.hidden_size, named.num_blocks) != (dim, depth):
        raise _other_sizes(hints.arch, (named.hidden_size, named.num_blocks), (dim, depth))
    return named


def _side(state: State, tokens: int, said: int | None, patch: int) -> int:
    """Returns the side of the map of patches; ``said`` is that of images, in pixels.

    All prefix tokens have positions, or none but the class token, or none at all.
    """
    rows, registers = state["pos_embed"].shape[1], "reg_token" in state
    sides: set[int] = set()
    for count in (tokens, 1, 0) if registers else (tokens, 0):
        side = round(max(rows - count, 0) ** 0.5)
        if side and side**2 == rows - count:
            sides.add(side)
    if said is not None and said // patch in sides:
        return said // patch
    if len(sides) == 1:
        return sides.pop()
    found = f"the weights have {rows} positions and {tokens} prefix tokens, which is "
    if not sides:
        raise CheckpointError(f"{found}no square map of patches: only square images are supported")
    raise CheckpointError(
        f"{found}a map of {' or '.join(map(str, sorted(sides)))} patches a side: give the folder "
        "with its config.json (img_size)"
    )


def _rotation(state: State, hints: Hints, row: Published | None) -> tuple[str, int]:
    """Returns the kind of rotary positions, of ``ROTATIONS``, and the side that they count on."""
    used = hints.setting("use_rot_pos_emb")
    found = dict(row.rotation or {}) if row is not None else {}
    without = "pos_embed" not in state and BIAS not in state
    if used is None and row is None and (hints.eva or without):
        lacks = "pos_embed is missing; " if without else ""
        raise CheckpointError(f"{lacks}weights do not tell rotary positions; {_NAME_IT}")
    if used is False or not (used or found):
        return "", 0
    # Arguments change the published settings one by one, as in timm.
    found = found or {**_ROTATIONS["eva"], "ref_feat_shape": None}
    for (
        name,
        argument,
    ) in _ROTATION_ARGUMENTS.items():
        if (said := hints.setting(argument)) is not None:
            found[name] = said
    if (kind := hints.setting("rope_type")) is not None:
        found["class"] = _ROTATION_CLASSES.get(kind, kind)
    shape: Any = found.pop("ref_feat_shape") or 0
    sides = [shape] if isinstance(shape, int) else list(shape)
    if sides[0] != sides[-1]:
        raise CheckpointError(f"ref_feat_shape must be square, found {sides}")
    side = sides[0]
    for kind, form in _ROTATIONS.items():
        if all(found.get(name) == value for name, value in form.items()):
            return kind, side
    raise CheckpointError(f"these rotary positions are not supported: {found}")


def _said_size(hints: Hints, row: Published | None) -> int | None:
    """Returns the side of images as hints or all published weights say it, or None."""
    said = _written_size(hints)
    if said is None and row is not None:
        sizes = {about["size"][-1] for about in weights_named(row, hints.text).values()}
        said = sizes.pop() if len(sizes) == 1 else None
    return said


def _written_size(hints: Hints) -> int | None:
    """Returns the side that ``config.json`` says; 32 x 128 has as many patches as 64 x 64."""
    said = hints.setting("img_size") or hints.setting("input_size")
    if said is None:
        return None
    sides = [said] if isinstance(said, int) else list(said)[-2:]
    if sides[0] != sides[-1]:
        raise CheckpointError(f"only square images are supported, found {sides}")
    return int(sides[0])


_NAME_IT = (
    "give timm's name of the architecture: --backbone NAME --weights FILE, or rename the file so "
    "that it begins with that name"
)


def _one_form(alike: list[Published]) -> None:
    """Refuses nameless weights that published architectures compute in several ways."""
    forms = {(r.block, r.attention, r.mlp, r.norm, r.activation) for r in alike}
    if len(forms) > 1 or any(row.rotation for row in alike):
        names = ", ".join(sorted({row.name for row in alike})[:4])
        raise CheckpointError(
            "weights do not tell rotary positions and activations, and these could be those of "
            f"{names} and others; {_NAME_IT}"
        )
    if alike:
        _known(alike[0])


def _heads(
    state: State, hints: Hints, row: Published | None, alike: list[Published], depth: int
) -> int:
    dim = len(state["patch_embed.proj.weight"])
    said = hints.num_heads or hints.setting("num_heads") or (row and row.num_heads)
    if said:
        return int(said)
    if BIAS in state:
        return state[BIAS].shape[1]
    known = sorted({other.num_heads for other in alike})
    if len(known) == 1:
        return known[0]
    which = f"published ones have {' or '.join(map(str, known))}" if known else "none is published"
    raise UnknownHeadsError(
        f"the number of attention heads cannot be told from {depth} blocks of width {dim} "
        f"({which}): give it with --num-heads N, or {_NAME_IT}"
    )


def _activation(
    state: State, hints: Hints, row: Published | None, alike: list[Published], note: Note
) -> str:
    known = row or (alike[0] if alike else None)
    said = hints.setting("act_layer") or (known and known.activation)
    if said:
        if (name := activation_named(str(said))) is not None:
            return name
        raise CheckpointError(
            f"activation {str(said)[:60]!r} is not supported: expected {', '.join(ACTIVATIONS)}"
        )
    if "norm_pre.weight" in state:
        cure = "say act_layer in config.json's model_args" if hints.written else _NAME_IT
        raise CheckpointError(f"weights of CLIP come with two activations; {cure}")
    assumed = "silu" if "blocks.0.mlp.gate.weight" in state else "gelu"
    note(f"the activation is assumed to be {assumed}, which weights do not tell")
    return assumed


def _pooling(state: State, hints: Hints, row: Published | None, tokens: int) -> str:
    said = hints.setting("global_pool")
    if said is None:
        if "attn_pool.latent" in state:
            said = "map"
        elif "fc_norm.weight" in state or not tokens:
            said = "avg"
        else:
            said = row.pooling if row else "token"
    if said == "map" and hints.eva:
        raise CheckpointError("attention pooling in an EVA is not supported")
    if said not in _POOLINGS:
        raise CheckpointError(
            f"global_pool {str(said)[:60]!r} is not supported: expected {', '.join(_POOLINGS)}"
        )
    return _POOLINGS[said]


def _swin(state: State, hints: Hints, row: Published | None, note: Note) -> LGViTConfig:
    dim, _, patch, _ = state["patch_embed.proj.weight"].shape
    depths, heads = [], []
    for stage in range(count_parts(state, "layers.")):
        depths.append(count_parts(state, f"layers.{stage}.blocks."))
        attention = f"layers.{stage}.blocks.0.attn"
        table = state.get(f"{attention}.relative_position_bias_table")
        scales = state.get(f"{attention}.logit_scale")
        heads.append(1 if table is None else table.shape[1])
        if scales is not None:
            heads[-1] = len(scales)
    if hints.num_heads is not None:
        raise CheckpointError("a Swin tells its attention heads: leave --num-heads out")
    if (pool := hints.setting("global_pool")) not in (None, "avg"):
        raise CheckpointError(
            f"global_pool {str(pool)[:60]!r} is not supported in a Swin: expected avg"
        )
    if is_swinv2(state):
        row = row or _row_beside(hints, dim, sum(depths))
    windows = _windows(state, hints, row, len(depths))
    window = windows[0]
    size = _swin_size(state, hints, row, window, patch * window << (len(depths) - 1), note)
    classes, family = len(state[head_name(state)]), "swinv2" if is_swinv2(state) else "swin"
    if hints.arch in architectures():
        named = _named(hints, dim, sum(depths), num_classes=classes, image_size=size)
        if named.family != family:
            label = FAMILIES[family].label
            raise CheckpointError(f"these weights are no {hints.arch}: they are those of a {label}")
        config = named.replace(window_size=window, shift_first=True)
    else:
        mlp = state.get("layers.0.blocks.0.mlp.fc1.weight")
        config = LGViTConfig(
            family=family,
            image_size=size,
            patch_size=patch,
            hidden_size=dim,
            num_blocks=sum(depths),
            num_heads=heads[0],
            intermediate_size=4 * dim if mlp is None else len(mlp),
            num_classes=classes,
            prefix_tokens=0,
            pooling="mean",
            activation=_activation(state, hints, row, [], note),
            layer_norm_eps=1e-5,
            qkv_bias=any(f"layers.0.blocks.0.attn.{b}" in state for b in ("qkv.bias", "q_bias")),
            depths=tuple(depths),
            stage_heads=tuple(heads),
            window_size=window,
            shift_first=True,
            preprocess=Preprocess(resize=size),  # that of the weights follows
        )
    for (stage, _), block in zip(places(config), config.blocks, strict=True):
        if block.window != min(windows[stage], block.grid):
            raise CheckpointError(f"windows of several sizes are not supported, found {windows}")
    return config


def is_swinv2(state: Container[str]) -> bool:
    """Says whether weights with timm's names are those of a Swin V2."""
    return _SCALES in state or _SCALES.replace("logit_scale", "cpb_mlp.0.weight") in state


def _row_beside(hints: Hints, dim: int, depth: int) -> Published | None:
    """Returns the Swin V2 that config.json or the file's name says beside a name of ours."""
    row = published(str(hints.written.get("architecture") or named_in(hints.stem)))
    fits = row is not None and (row.width, row.depth, row.block) == (dim, depth, _SWIN_BLOCKS[1])
    return row if fits else None


def _windows(state: State, hints: Hints, row: Published | None, stages: int) -> list[int]:
    """Returns the side of each stage's windows, as long as its map is no smaller."""
    said = hints.setting("window_size")
    if said is None and row is not None:
        said = row.window or None
    if isinstance(said, list) and len(said) == 2 and not isinstance(said[0], list):
        said = [said] * stages  # height and width
    windows = None if said is None else swinv2.sides(said, stages, "window_size")
    if not is_swinv2(state):
        return [(round(len(state[_TABLE]) ** 0.5) + 1) // 2] * stages
    if (table := state.get(_COORDINATES)) is not None:
        own = (table.shape[1] + 1) // 2
        if windows is not None and windows[0] != own:
            raise CheckpointError(
                f"expected windows of {own}, as these weights have them, found {windows[0]} in "
                f"{hints.name or 'config.json'}"
            )
        return [own] * stages
    if windows is None:
        raise CheckpointError(f"weights of Swin V2 do not tell the size of windows; {_NAME_IT}")
    return windows


def tabled(state: State, config: LGViTConfig, hints: Hints) -> State:
    """Returns weights whose relative positions are tables; see ``swinv2.tabled``."""
    if not is_swinv2(state):
        return state
    said = hints.setting("pretrained_window_sizes")
    if _COORDINATES in state:
        said = None
    elif said is None:
        row = published(hints.name) or _row_beside(hints, config.hidden_size, config.num_blocks)
        if row is None or not row.pretrained_windows:
            raise CheckpointError(
                f"weights of Swin V2 do not tell pretrained_window_sizes; {_NAME_IT}"
            )
        said = row.pretrained_windows
    return swinv2.tabled(state, config, said, "layers.{}.blocks.{}.attn", "cpb_mlp")


def _swin_size(
    state: State, hints: Hints, row: Published | None, window: int, last: int, note: Note
) -> int:
    """Returns the side of a Swin's images, on which its weights do not depend.

    ``last`` is the side at which the last stage's map is one window, as in published models.
    """
    if (said := _said_size(hints, row)) is not None:
        return said
    mask = state.get("layers.0.blocks.1.attn_mask")  # one row per window of the first map
    if mask is not None:
        patch = state["patch_embed.proj.weight"].shape[-1]
        return int(patch * window * round(len(mask) ** 0.5))
    if is_swinv2(state):
        raise CheckpointError(
            "the size of images cannot be told from weights of Swin V2: give the folder with its "
            "config.json (img_size)"
        )
    note(
        f"images are assumed to be {last} x {last}, as in published Swins with these windows; "
        "other sizes: --image-size of train"
    )
    return last


def _preprocess(hints: Hints, row: Published | None, config: LGViTConfig, note: Note) -> Preprocess:
    """Returns what ``pretrained_cfg`` says, else what weights of this name were trained with."""
    # Older files of timm have the settings at the top.
    cfg = hints.written.get("pretrained_cfg", hints.written if "mean" in hints.written else {})
    if not isinstance(cfg, dict):
        raise ConfigError(f"pretrained_cfg must be an object, found {type(cfg).__name__}")
    usual = FAMILIES[config.family].usual_preprocess(config.image_size)
    if not cfg and row is not None:
        found = [
            about
            for about in weights_named(row, hints.text).values()
            if hints.fresh or about["classes"] == config.num_classes
        ]
        same = [about for about in found if _pixels(about) == _pixels(found[0])]
        if len(same) < len(found):
            note(
                f"published weights of {row.name} differ in preprocessing; assumed: "
                f"{found[0]['interpolation']}, crop {found[0]['crop_pct']}, mean "
                f"{found[0]['mean']}, std {found[0]['std']} (otherwise: --mean, --std, "
                "--interpolation, --crop-pct)"
            )
        cfg = found[0] if found else {}
    if not cfg:
        if hints.arch not in architectures():
            note(
                "nothing says how images were prepared for these weights; assumed: "
                f"{usual.described(config.image_size)} (otherwise: --mean, --std, "
                "--interpolation, --crop-pct)"
            )
        return usual
    mode, share = cfg.get("crop_mode") or "center", cfg.get("crop_pct") or 0.875
    if mode not in ("center", "squash"):
        raise ConfigError(f"crop_mode {str(mode)[:60]!r} is not supported: expected center, squash")
    if type(share) not in (int, float) or not 0.1 <= share <= 1:
        raise ConfigError(f"crop_pct must be 0.1..1, found {str(share)[:60]!r}")
    fields = {
        "resize": int(config.image_size / share),
        "interpolation": cfg.get("interpolation", "bicubic"),
        "mean": cfg.get("mean", usual.mean),
        "std": cfg.get("std", usual.std),
        "squash": mode == "squash",
    }
    return from_json(Preprocess, fields, where="pretrained_cfg", error=ConfigError)


def _labels(hints: Hints, config: LGViTConfig) -> tuple[str, ...]:
    names = hints.written.get("label_names") or ()
    if isinstance(names, dict):
        names = [names.get(i, names.get(str(i))) for i in range(len(names))]
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ConfigError("label_names must name every class, from 0 on")
    if names and len(names) != config.num_classes:
        raise ConfigError(
            f"expected label_names of {config.num_classes} classes, found {len(names)}"
        )
    return tuple(names)


def _pixels(about: Mapping[str, Any]) -> list[Any]:
    return [about[name] for name in ("interpolation", "crop_pct", "crop_mode", "mean", "std")]
