"""What others call our parameters: the authors' LGViT, Hugging Face and timm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lgvit_edge.config import LGViTConfig


@dataclass(frozen=True)
class Source:
    """Where one of our parameters comes from in a foreign state dict.

    Attributes:
        names: foreign tensors, concatenated along dimension 1 when there are several.
        part: 0, 1 or 2 to take that third of a stacked query-key-value tensor; None for all.
    """

    names: tuple[str, ...]
    part: int | None = None


# Present in foreign files, read by nothing we compute.
IGNORED = (".pooler.dense.", "num_batches_tracked", "mask_token")


def huggingface(config: LGViTConfig, prefix: str) -> dict[str, Source]:
    """Our names to Hugging Face's for a backbone; ``prefix`` is ``vit`` or ``deit``."""
    tokens = ("cls_token", "distillation_token")[: config.prefix_tokens]
    pairs = {
        "backbone.embedding.prefix": tuple(f"{prefix}.embeddings.{t}" for t in tokens),
        "backbone.embedding.position": (f"{prefix}.embeddings.position_embeddings",),
        **_both("backbone.embedding.patch", f"{prefix}.embeddings.patch_embeddings.projection"),
        **_both("backbone.final.norm", f"{prefix}.layernorm"),
    }
    for i in range(config.num_blocks):
        ours, theirs = f"backbone.blocks.{i}", f"{prefix}.encoder.layer.{i}"
        for part in ("query", "key", "value"):
            source = f"{theirs}.attention.attention.{part}"
            pairs |= _both(f"{ours}.attention.{part}", source, bias=config.qkv_bias)
        pairs |= _both(f"{ours}.attention.proj", f"{theirs}.attention.output.dense")
        pairs |= _both(f"{ours}.norm1", f"{theirs}.layernorm_before")
        pairs |= _both(f"{ours}.norm2", f"{theirs}.layernorm_after")
        pairs |= _both(f"{ours}.fc1", f"{theirs}.intermediate.dense")
        pairs |= _both(f"{ours}.fc2", f"{theirs}.output.dense")
    pairs |= _classifiers(config, "backbone.final.classifier", "")
    return {ours: Source(theirs) for ours, theirs in pairs.items()}


def authors(config: LGViTConfig) -> dict[str, Source]:
    """Our names to those of the authors' LGViT (ViT and DeiT)."""
    sources = huggingface(config, "deit")
    for k, exit in enumerate(config.exits):
        ours, theirs = f"heads.{k}.body", f"deit.encoder.highway.{k}.mlp"
        pairs: dict[str, tuple[str, ...]] = {}
        if exit.head == "lph":
            pairs |= _both(f"{ours}.expand", f"{theirs}.conv1.0")
            pairs |= _norm(f"{ours}.expand_norm", f"{theirs}.conv1.2")
            pairs |= _both(f"{ours}.project", f"{theirs}.conv2.0")
            pairs |= _norm(f"{ours}.project_norm", f"{theirs}.conv2.1")
            if exit.kernel:
                pairs |= _both(f"{ours}.depthwise", f"{theirs}.proj")
                pairs |= _norm(f"{ours}.depthwise_norm", f"{theirs}.proj_bn")
        else:
            pairs |= _both(f"{ours}.proj", f"{theirs}.proj")
            for part, name in enumerate(("query", "key", "value")):
                sources[f"{ours}.{name}.weight"] = Source((f"{theirs}.qkv.weight",), part)
        pairs |= _classifiers(config, f"heads.{k}.classifier", f"deit.encoder.highway.{k}.")
        sources |= {name: Source(names) for name, names in pairs.items()}
    return sources


def timm(config: LGViTConfig) -> dict[str, Source]:
    """Our names to timm's for a backbone."""
    tokens = ("cls_token", "dist_token")[: config.prefix_tokens]
    heads = ("head", "head_dist")[: config.classifiers]
    pairs = {
        "backbone.embedding.prefix": tokens,
        "backbone.embedding.position": ("pos_embed",),
        **_both("backbone.embedding.patch", "patch_embed.proj"),
        **_both("backbone.final.norm", "norm"),
    }
    for j, head in enumerate(heads):
        pairs |= _both(f"backbone.final.classifier.linears.{j}", head)
    sources = {}
    for i in range(config.num_blocks):
        ours, theirs = f"backbone.blocks.{i}", f"blocks.{i}"
        pairs |= _both(f"{ours}.attention.proj", f"{theirs}.attn.proj")
        for name in ("norm1", "norm2"):
            pairs |= _both(f"{ours}.{name}", f"{theirs}.{name}")
        for name in ("fc1", "fc2"):
            pairs |= _both(f"{ours}.{name}", f"{theirs}.mlp.{name}")
        for part, name in enumerate(("query", "key", "value")):
            for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
                source = Source((f"{theirs}.attn.qkv.{kind}",), part)
                sources[f"{ours}.attention.{name}.{kind}"] = source
    return sources | {ours: Source(theirs) for ours, theirs in pairs.items()}


def unexpected(state: dict[str, object], used: Iterator[str]) -> list[str]:
    """Foreign names that nothing reads and nobody may overlook."""
    known = set(used)
    return sorted(k for k in state if k not in known and not any(i in k for i in IGNORED))


def _both(ours: str, theirs: str, *, bias: bool = True) -> dict[str, tuple[str, ...]]:
    kinds = ("weight", "bias") if bias else ("weight",)
    return {f"{ours}.{kind}": (f"{theirs}.{kind}",) for kind in kinds}


def _norm(ours: str, theirs: str) -> dict[str, tuple[str, ...]]:
    kinds = ("weight", "bias", "running_mean", "running_var")
    return {f"{ours}.{kind}": (f"{theirs}.{kind}",) for kind in kinds}


def _classifiers(config: LGViTConfig, ours: str, theirs: str) -> dict[str, tuple[str, ...]]:
    names = ("classifier",)
    if config.classifiers == 2:
        names = ("cls_classifier", "distillation_classifier")  # type: ignore[assignment]
    pairs: dict[str, tuple[str, ...]] = {}
    for j, name in enumerate(names):
        pairs |= _both(f"{ours}.linears.{j}", f"{theirs}{name}")
    return pairs
