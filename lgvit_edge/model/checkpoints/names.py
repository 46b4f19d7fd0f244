"""What others call our parameters: the authors' LGViT, Hugging Face and timm.

Each says what it calls our modules; a parameter goes by its module's name. Transformers 5 renames
modules in memory and saves them under their old names: ``saved`` undoes that first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.model.heads import ExitHead, Names
from lgvit_edge.model.lgvit import LGViT


@dataclass(frozen=True)
class Source:
    """Where one of our parameters comes from in a foreign state dict.

    Attributes:
        names: foreign tensors, concatenated along dimension 1 when there are several.
        part: 0, 1 or 2 to take that third of a stacked query-key-value tensor; None for all.
    """

    names: tuple[str, ...]
    part: int | None = None


# Present in foreign files, read by nothing we compute: poolers behind no exit, counters, constants,
# and what the authors' training leaves behind.
_IGNORED = re.compile(
    r"\.pooler\.dense\.|num_batches_tracked$|mask_token$|relative_position_index$|attn_mask$"
    r"|^layernorm\.|^downsampling_r\d\."
)
_BLOCK: Names = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attention.proj": "attention.output.dense",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}
_TIMM_BLOCK: Names = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.query": ("attn.qkv", 0),
    "attention.key": ("attn.qkv", 1),
    "attention.value": ("attn.qkv", 2),
    "attention.table": "attn.relative_position_bias_table",
    "attention.proj": "attn.proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
_RENAMED = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^(vit|deit)\.layers\.", r"\1.encoder.layer."),
        (r"^(swin\..*\.attention)\.([qkv])_proj\.", r"\1.self.\2_proj."),
        (r"^((?:vit|deit)\..*\.attention)\.([qkv])_proj\.", r"\1.attention.\2_proj."),
        (r"\.q_proj\.", ".query."),
        (r"\.k_proj\.", ".key."),
        (r"\.v_proj\.", ".value."),
        (r"\.attention\.o_proj\.", ".attention.output.dense."),
        (r"\.attention\.relative_position_bias\.", ".attention.self."),
        (r"^((?:vit|deit|swin)\..*)\.mlp\.fc1\.", r"\1.intermediate.dense."),
        (r"^((?:vit|deit|swin)\..*)\.mlp\.fc2\.", r"\1.output.dense."),
    )
)


def saved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A Hugging Face state dict under the names that are saved, whichever it came with."""
    found = {}
    for name, tensor in state.items():
        for pattern, replacement in _RENAMED:
            name = pattern.sub(replacement, name)
        found[name] = tensor
    return found


def own(model: LGViT) -> dict[str, Source]:
    """Our own names."""
    return {name: Source((name,)) for name in model.state_dict()}


def huggingface(model: LGViT, prefix: str) -> dict[str, Source]:
    """Our names to Hugging Face's for a backbone; ``prefix`` is ``vit``, ``deit`` or ``swin``."""
    config = model.config
    inner = "self" if config.depths else "attention"
    parts = {f"attention.{p}": f"attention.{inner}.{p}" for p in ("query", "key", "value")}
    block = {
        **_BLOCK,
        **parts,
        "attention.table": f"attention.{inner}.relative_position_bias_table",
    }
    names: Names = {
        "backbone.embedding.patch": f"{prefix}.embeddings.patch_embeddings.projection",
        "backbone.embedding.norm": f"{prefix}.embeddings.norm",
        "backbone.embedding.position": f"{prefix}.embeddings.position_embeddings",
        "backbone.final.norm": f"{prefix}.layernorm",
    }
    for i, (stage, place) in enumerate(_places(config)):
        theirs = f"{prefix}.encoder.layer.{i}"
        if config.depths:
            theirs = f"{prefix}.encoder.layers.{stage}.blocks.{place}"
            names[f"backbone.blocks.{i}.merge"] = f"{prefix}.encoder.layers.{stage - 1}.downsample"
        names |= _within(f"backbone.blocks.{i}", block, theirs)
    finals = ["cls_classifier", "distillation_classifier"]
    names |= _finals(finals if config.classifiers == 2 else ["classifier"])
    tokens = [f"{prefix}.embeddings.{t}" for t in ("cls_token", "distillation_token")]
    return _sources(model, names, tokens)


def authors(model: LGViT) -> dict[str, Source]:
    """Our names to those of the authors' LGViT."""
    config = model.config
    prefix = "swin" if config.depths else "deit"
    names: Names = {}
    counts = [0] * len(config.depths)
    for k, (exit, head) in enumerate(zip(config.exits, model.heads, strict=True)):
        assert isinstance(head, ExitHead)
        theirs = f"{prefix}.encoder.highway.{k}"
        if config.depths:  # numbered anew in each stage
            stage = _places(config)[exit.block - 1][0]
            theirs = f"{prefix}.encoder.layers.{stage}.highway.{counts[stage]}"
            counts[stage] += 1
        names |= _within(f"heads.{k}", head.authors(), theirs)
    return huggingface(model, prefix) | _sources(model, names, [])


def timm(model: LGViT, state: Iterable[str]) -> dict[str, Source]:
    """Our names to timm's for a backbone; ``state`` tells older Swins from newer ones."""
    config, found = model.config, set(state)
    names: Names = {
        "backbone.embedding.patch": "patch_embed.proj",
        "backbone.embedding.norm": "patch_embed.norm",
        "backbone.embedding.position": "pos_embed",
        "backbone.final.norm": "norm",
    }
    # timm once merged at the end of a stage, like Swin's authors, and now at the start of the next.
    late = "layers.0.downsample.norm.weight" in found
    for i, (stage, place) in enumerate(_places(config)):
        theirs = f"layers.{stage}.blocks.{place}" if config.depths else f"blocks.{i}"
        names[f"backbone.blocks.{i}.merge"] = f"layers.{stage - late}.downsample"
        names |= _within(f"backbone.blocks.{i}", _TIMM_BLOCK, theirs)
    head = "head.fc" if "head.fc.weight" in found else "head"
    names |= _finals([head, "head_dist"])
    return _sources(model, names, ["cls_token", "dist_token"])


def unexpected(state: Iterable[str], used: Iterator[str]) -> list[str]:
    """Foreign names that nothing reads and nobody may overlook."""
    known = set(used)
    return sorted(k for k in state if k not in known and not _IGNORED.search(k))


def _places(config: LGViTConfig) -> list[tuple[int, int]]:
    """Stage and place in it of every block, from 0; one stage where there are none."""
    depths = config.depths or (config.num_blocks,)
    return [(stage, place) for stage, depth in enumerate(depths) for place in range(depth)]


def _within(ours: str, names: Names, theirs: str) -> Names:
    return {
        f"{ours}.{key}": f"{theirs}.{name}"
        if isinstance(name, str)
        else (f"{theirs}.{name[0]}", name[1])
        for key, name in names.items()
    }


def _finals(theirs: list[str]) -> Names:
    return {f"backbone.final.classifier.linears.{j}": name for j, name in enumerate(theirs)}


def _sources(model: LGViT, names: Names, tokens: list[str]) -> dict[str, Source]:
    """The source of every parameter that is in ``names``, itself or a module it is in."""
    sources = {}
    for name in model.state_dict():
        if name == "backbone.embedding.prefix" and tokens:
            sources[name] = Source(tuple(tokens[: model.config.prefix_tokens]))
        parts = name.split(".")
        for count in range(len(parts), 0, -1):
            theirs = names.get(".".join(parts[:count]))
            if theirs is None or parts[-1] == "num_batches_tracked":
                continue
            text, part = (theirs, None) if isinstance(theirs, str) else theirs
            sources[name] = Source((".".join([text, *parts[count:]]),), part)
            break
    return sources
