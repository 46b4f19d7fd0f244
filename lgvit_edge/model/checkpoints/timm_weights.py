"""The weights of timm's backbones: their names, and what a plain ViT has instead of their parts."""

from __future__ import annotations

import re
from collections.abc import Container

import torch

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.model.checkpoints.containers import Note, note_in_log
from lgvit_edge.model.checkpoints.weights import (
    Source,
    State,
    add_bias,
    places,
    scale_layer,
    sources_of,
)
from lgvit_edge.model.heads import Names, within
from lgvit_edge.model.lgvit import LGViT

_BLOCK: Names = {
    "norm1": "norm1",
    "norm2": "norm2",
    **{f"attention.{p}": ("attn.qkv", i) for i, p in enumerate(("query", "key", "value"))},
    "attention.query_norm": "attn.q_norm",
    "attention.key_norm": "attn.k_norm",
    "attention.table": "attn.relative_position_bias_table",
    "attention.scale": "attn.logit_scale",
    "attention.relative_bias.table": "attn.relative_position_bias_table",
    "attention.norm": "attn.norm",
    "attention.proj": "attn.proj",
    "fc1": "mlp.fc1",
    "gate": "mlp.gate",
    "mlp_norm": "mlp.norm",
    "fc2": "mlp.fc2",
}
# Of attention pooling; a plain ViT has key and value apart.
_POOL: Names = {
    **{f"attention.{part}": part for part in ("latent", "query", "key", "value", "proj")},
    **{"norm2": "norm", "fc1": "mlp.fc1", "fc2": "mlp.fc2"},
}
BIAS = "blocks.0.attn.relative_position_bias_table"  # BEiT's
_SHARED_BIAS = "rel_pos_bias.relative_position_bias_table"  # of all blocks, beside their own
_TOKENS = ("cls_token", "dist_token", "reg_token")  # in their order before the patches
_SCALE = re.compile(r"^(blocks\.\d+)\.(?:ls|gamma_)([12])(?:\.gamma)?$")  # timm's, DeiT III's


def head_name(state: Container[str]) -> str:
    """Returns the name of the classifier's weight."""
    return "head.fc.weight" if "head.fc.weight" in state else "head.weight"


def count_parts(state: State, prefix: str) -> int:
    """Returns how many parts of a name follow a prefix, such as blocks."""
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})


def count_tokens(state: State) -> int:
    """Returns how many tokens precede those of the patches."""
    return sum(state[name].shape[1] for name in _TOKENS if name in state)


def plain(state: State, classes: int | None = None, note: Note = note_in_log) -> State:
    """Returns weights as a plain ViT holds them.

    ``classes`` is the number of classes of a fresh classifier, where the weights have none.

    LayerScale is multiplied into the layer before it, a relative bias that blocks share is added to
    each of theirs, and a packed SwiGLU is taken apart. Biases of patches, which CLIP leaves out,
    become zeros.

    Raises:
        CheckpointError: the shapes of these parts do not fit together.
    """
    scales = {m.groups(): tensor for n, tensor in state.items() if (m := _SCALE.match(n))}
    result = {name: tensor for name, tensor in state.items() if not _SCALE.match(name)}
    for (block, which), scale in scales.items():
        scale_layer(result, f"{block}.{'attn.proj' if which == '1' else 'mlp.fc2'}", scale)
    for number in range(count_parts(result, "blocks.")):
        _stack(result, f"blocks.{number}")
    if (shared := result.pop(_SHARED_BIAS, None)) is not None:
        for number in range(count_parts(result, "blocks.")):
            add_bias(result, f"blocks.{number}.attn.relative_position_bias_table", shared)
    for kind in ("weight", "bias"):
        if (packed := result.pop(f"attn_pool.kv.{kind}", None)) is not None:
            result[f"attn_pool.key.{kind}"], result[f"attn_pool.value.{kind}"] = packed.chunk(2)
            result[f"attn_pool.query.{kind}"] = result.pop(f"attn_pool.q.{kind}")
    for name in [name for name in result if re.fullmatch(r"blocks\.\d+\.mlp\.fc1\.\w+", name)]:
        block, _, kind = name.partition(".mlp.fc1.")
        inner, last = result[name], result.get(f"{block}.mlp.fc2.weight")
        if last is not None and last.ndim == 2 and inner.shape[:1] == (2 * last.shape[1],):
            result[f"{block}.mlp.gate.{kind}"], result[name] = inner.chunk(2)
    norm = next((state[n] for n in ("fc_norm.weight", "norm.weight") if n in state), None)
    if classes is not None and head_name(state) not in state and norm is not None:
        note(f"the weights have no classifier; one of {classes} classes starts from zeros")
        result["head.weight"] = norm.new_zeros(classes, len(norm))
        result["head.bias"] = norm.new_zeros(classes)
    patch = result.get("patch_embed.proj.weight")
    if patch is not None and "norm_pre.weight" in result:  # CLIP's patches have no bias
        result.setdefault("patch_embed.proj.bias", patch.new_zeros(len(patch)))
    return result


def named_as_eva(state: Container[str]) -> bool:
    """Says whether weights are named as in timm's EVA, which has rotary positions or none."""
    # DeiT III's authors write gamma_1 too; timm's files have ls1.gamma.
    names = ("attn.q_bias", "attn.q_proj.weight", "mlp.fc1_g.weight", "gamma_1")
    beit = BIAS in state or _SHARED_BIAS in state
    return not beit and any(f"blocks.0.{name}" in state for name in names)


def _stack(state: State, block: str) -> None:
    """Gives a block of EVA the names of a plain ViT; its keys have no bias."""
    parts = [state.pop(f"{block}.attn.{part}_proj.weight", None) for part in "qkv"]
    weights = [part for part in parts if part is not None]
    if len(weights) == 3:
        state[f"{block}.attn.qkv.weight"] = torch.cat(weights)
    for form in ("_bias", "_proj.bias"):
        query, value = (state.pop(f"{block}.attn.{part}{form}", None) for part in "qv")
        if query is not None and value is not None:
            state[f"{block}.attn.qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    for kind in ("weight", "bias"):
        for theirs, ours in (("fc1_g", "gate"), ("fc1_x", "fc1")):
            if (tensor := state.pop(f"{block}.mlp.{theirs}.{kind}", None)) is not None:
                state[f"{block}.mlp.{ours}.{kind}"] = tensor


def arranged(state: State, config: LGViTConfig) -> State:
    """Returns plain weights in our order of rotary positions: halves of a head, not neighbours.

    Where tokens have no learnt positions, they become zeros.
    """
    result, dim, tokens = dict(state), config.hidden_size, config.prefix_tokens
    if "pos_embed" not in result and (config.rotation or config.relative_positions):
        result["pos_embed"] = torch.zeros(1, *config.hidden_shape(0))
    position = result.get("pos_embed")
    if position is not None and position.ndim == 3 and not config.depths:
        count = position.shape[1] - config.grid**2  # of the prefix tokens, the first have positions
        none = position.new_zeros(1, max(tokens - count, 0), position.shape[-1])
        result["pos_embed"] = torch.cat([position[:, :count], none, position[:, count:]], dim=1)
    if config.rotation != "eva":
        return result
    width = dim // config.num_heads
    order = torch.arange(dim).reshape(-1, width // 2, 2).transpose(1, 2).flatten()
    rows = torch.cat([order, order + dim, torch.arange(2 * dim, 3 * dim)])
    for i in range(config.num_blocks):
        for name in (f"blocks.{i}.attn.qkv.weight", f"blocks.{i}.attn.qkv.bias"):
            if name in result and len(result[name]) == 3 * dim:
                result[name] = result[name][rows]
    return result


def timm_names(model: LGViT, state: Container[str]) -> dict[str, Source]:
    """Returns where each of our parameters is; ``state`` tells older Swins from newer ones."""
    config = model.config
    names: Names = {
        "backbone.embedding.patch": "patch_embed.proj",
        "backbone.embedding.norm": "patch_embed.norm" if config.depths else "norm_pre",
        "backbone.embedding.position": "pos_embed",
        "backbone.final.norm": "fc_norm" if "fc_norm.weight" in state else "norm",
    }
    # timm once merged at the end of a stage, like Swin's authors, and now at the start of the next.
    late = "layers.0.downsample.norm.weight" in state
    for i, (stage, place) in enumerate(places(config)):
        theirs = f"layers.{stage}.blocks.{place}" if config.depths else f"blocks.{i}"
        names[f"backbone.blocks.{i}.merge"] = f"layers.{stage - late}.downsample"
        names |= within(f"backbone.blocks.{i}", _BLOCK, theirs)
    if config.pooling == "attention":
        names["backbone.final.pool.norm1"] = "norm"
        names |= within("backbone.final.pool", _POOL, "attn_pool")
    head = head_name(state).removesuffix(".weight")
    names |= within("backbone.final.classifier.linears", {"0": head, "1": "head_dist"})
    return sources_of(model, names, [name for name in _TOKENS if name in state])
