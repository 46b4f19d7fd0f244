"""The registry of backbone families, each described by one ``Family``.

A new family is one ``Family`` here and the module its ``backbone`` names; ``register_family`` takes
one from outside the package. Nothing here imports PyTorch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lgvit_edge.architecture.sizes import BackboneConfig, BlockConfig
from lgvit_edge.errors import ConfigError
from lgvit_edge.images.spec import Preprocess, usual_resize

Checks = list[tuple[bool, str]]  # (whether it holds, the error text otherwise)


def _equal_blocks(config: BackboneConfig) -> tuple[BlockConfig, ...]:
    block = BlockConfig(config.hidden_size, config.grid, config.num_heads, config.intermediate_size)
    return (block,) * config.num_blocks


def _no_stages(config: BackboneConfig) -> Checks:
    depths, heads, window = list(config.depths), list(config.stage_heads), config.window_size
    fault = (
        f"a {config.family} has no depths, stage_heads and window_size, found {depths}, "
        f"{heads} and {window}"
    )
    return [
        (not depths and not heads and window == 0, fault),
        (
            not config.shift_first and config.window_mask == 100,
            f"a {config.family} has no shift_first and window_mask",
        ),
    ]


@dataclass(frozen=True)
class Family:
    """Describes a family of backbones: its names, its shapes and where its code is.

    Attributes:
        name: as in configurations and bundles; ``label``: as people write it.
        backbone: the module (or its name) of its embedding, blocks and final classifier; see
            ``lgvit_edge.model.backbones.backbone.Parts``.
        architectures: published sizes by name: the fields of ``LGViTConfig`` for an image size.
        preprocess: of images for published weights, at 224 x 224 pixels.
        prefix_tokens: how many tokens may precede those of the patches, at most.
        blocks: sizes of blocks 1..L of a configuration.
        faults: further checks of a configuration of this family.
        windows: sizes of the first and the last GAH; 2 and 3 in the paper (its g).
        mlp_head: ``(LGViTConfig, ExitConfig) -> ExitHead``, or its ``module:name``; usually the
            form of the final classifier.
        encoder_heads: attention heads of an encoder head; 0: as many as the block before it.
        encoder_eps: eps of the norms in an encoder head; 0: as in the backbone.
        model_types: its ``model_type`` in Hugging Face's ``config.json``.
        huggingface: ``(config.json) -> fields of LGViTConfig``, or its ``module:name``.
    """

    name: str
    label: str
    backbone: Any
    architectures: Mapping[str, Callable[[int], dict[str, Any]]] = field(default_factory=dict)
    preprocess: Preprocess = Preprocess()
    prefix_tokens: int = 0
    blocks: Callable[[BackboneConfig], tuple[BlockConfig, ...]] = _equal_blocks
    faults: Callable[[BackboneConfig], Checks] = _no_stages
    windows: tuple[int, int] = (2, 3)
    mlp_head: str | Callable[..., Any] = "lgvit_edge.model.heads.mlp:readout"
    encoder_heads: int = 0
    encoder_eps: float = 0.0
    model_types: tuple[str, ...] = ()
    huggingface: str | Callable[..., Any] = ""

    def usual_preprocess(self, image_size: int) -> Preprocess:
        """Returns the preprocessing of published weights, for images of this size."""
        return dataclasses.replace(self.preprocess, resize=usual_resize(image_size))


FAMILIES: dict[str, Family] = {}


def register_family(family: Family) -> None:
    """Adds a family of backbones to configurations, commands, export and training.

    Raises:
        ConfigError: its name, or that of one of its architectures, is taken.
    """
    names = {family.name, *family.architectures, *family.model_types}
    for other in FAMILIES.values():
        clashes = names & {other.name, *other.architectures, *other.model_types}
        if clashes:
            raise ConfigError(f"the family {other.name} has the name {min(clashes)!r} already")
    FAMILIES[family.name] = family


def family_named(name: str) -> Family:
    """Returns the family of this name, or raises ``ConfigError``."""
    if name not in FAMILIES:
        raise ConfigError(f"family must be one of {', '.join(FAMILIES)}, found {name!r}")
    return FAMILIES[name]


def _staged_blocks(config: BackboneConfig) -> tuple[BlockConfig, ...]:
    blocks, grid = [], config.grid
    for stage, (depth, heads) in enumerate(zip(config.depths, config.stage_heads, strict=True)):
        merged = grid if stage else 0
        grid = -(-grid // 2) if stage else grid
        # A map no larger than the window is a single window, which is never shifted.
        window = min(config.window_size, grid)
        for place in range(depth):
            block = BlockConfig(
                dim=config.hidden_size << stage,
                grid=grid,
                num_heads=heads,
                intermediate_size=config.intermediate_size << stage,
                window=window,
                shift=window // 2 if place % 2 and window < grid else 0,
                merges=0 if place else merged,
                shift_first=config.shift_first,
                window_mask=config.window_mask,
            )
            blocks.append(block)
    return tuple(blocks)


def _stage_faults(config: BackboneConfig) -> Checks:
    depths, heads = list(config.depths), list(config.stage_heads)
    widths = [config.hidden_size << stage for stage in range(min(len(depths), 8))]
    return [
        (
            1 <= len(depths) <= 8 and min(depths) >= 1 and sum(depths) == config.num_blocks,
            f"a {config.family} has 1 to 8 stages of at least one block, {config.num_blocks} in "
            f"all, found depths {depths}",
        ),
        (
            len(heads) == len(depths) and heads[:1] == [config.num_heads],
            f"expected one number of stage_heads per stage, {config.num_heads} in the first, "
            f"found {heads}",
        ),
        (
            all(h >= 1 and w % h == 0 for h, w in zip(heads, widths, strict=False)),
            f"stage widths {widths} are not multiples of stage_heads {heads}",
        ),
        (1 <= config.window_size <= 256, f"window_size must be 1..256, found {config.window_size}"),
        (
            1 <= config.window_mask <= 10_000,  # float16 must hold it
            f"window_mask must be 1..10000, found {config.window_mask}",
        ),
        (
            (config.pooling, config.final_norm) == ("mean", "tokens"),
            f"a {config.family} has pooling mean and final_norm tokens, found {config.pooling} and "
            f"{config.final_norm!r}",
        ),
        *(
            (not getattr(config, option), f"a {config.family} has no {option}")
            for option in (
                "gated",
                "mlp_norm",
                "qk_norm",
                "attention_norm",
                "relative_positions",
                "embedding_norm",
                "rotation",
            )
        ),
    ]


def _sizes(patch: int, width: int, depth: int, heads: int, **more: Any) -> dict[str, Any]:
    names = ("patch_size", "hidden_size", "num_blocks", "num_heads", "intermediate_size")
    return dict(zip(names, (patch, width, depth, heads, 4 * width), strict=True), **more)


def _vit(width: int, depth: int, heads: int, tokens: int, image_size: int) -> dict[str, Any]:
    return _sizes(16, width, depth, heads, prefix_tokens=tokens, classifiers=tokens)


def _swin(
    width: int, depths: tuple[int, ...], heads: int, window: int, image_size: int
) -> dict[str, Any]:
    return _sizes(
        *(4, width, sum(depths), heads),
        prefix_tokens=0,
        pooling="mean",
        layer_norm_eps=1e-5,
        depths=depths,
        stage_heads=tuple(heads << stage for stage in range(len(depths))),
        window_size=window if image_size % 32 else image_size // 32,
    )


_IMAGENET = Preprocess(256, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_VITS = {  # width, blocks, attention heads
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}
_SWINS = {  # width of the first stage, blocks per stage, attention heads in the first stage
    "tiny": (96, (2, 2, 6, 2), 3),
    "small": (96, (2, 2, 18, 2), 3),
    "base": (128, (2, 2, 18, 2), 4),
    "large": (192, (2, 2, 18, 2), 6),
}

for _family in (
    Family(
        "vit",
        "ViT",
        "lgvit_edge.model.backbones.vit",
        {f"vit-{size}": partial(_vit, *_VITS[size], 1) for size in _VITS},
        prefix_tokens=16,
        mlp_head="lgvit_edge.model.heads.mlp:pooler",
        model_types=(
            *("vit", "vit_mae", "vit_msn", "ijepa", "dinov2", "dinov2_with_registers"),
            *("dinov3_vit", "clip", "clip_vision_model", "siglip", "siglip_vision_model"),
            *("beit", "data2vec-vision"),
        ),
        huggingface="lgvit_edge.model.checkpoints.huggingface_vits:vit_fields",
    ),
    Family(
        "deit",
        "DeiT",
        "lgvit_edge.model.backbones.vit",
        {
            f"deit-{size}{form}": partial(_vit, *_VITS[size], tokens)
            for form, tokens in (("", 1), ("-distilled", 2))
            for size in ("tiny", "small", "base")
        },
        preprocess=_IMAGENET,
        prefix_tokens=16,
        model_types=("deit",),
        huggingface="lgvit_edge.model.checkpoints.huggingface_vits:vit_fields",
    ),
    Family(
        "swin",
        "Swin",
        "lgvit_edge.model.backbones.swin",
        {f"swin-{size}": partial(_swin, *_SWINS[size], 7) for size in _SWINS},
        preprocess=_IMAGENET,
        blocks=_staged_blocks,
        faults=_stage_faults,
        windows=(1, 2),  # the authors' choice for Swin's smaller maps
        # The authors' encoder block in a Swin is a DeiT's.
        encoder_heads=8,
        encoder_eps=1e-12,
        model_types=("swin",),
        huggingface="lgvit_edge.model.checkpoints.huggingface:swin_fields",
    ),
    Family(
        "swinv2",
        "Swin V2",
        "lgvit_edge.model.backbones.swinv2",
        {f"swinv2-{size}": partial(_swin, *_SWINS[size], 8) for size in _SWINS},
        preprocess=_IMAGENET,
        blocks=_staged_blocks,
        faults=_stage_faults,
        # Heads as on a Swin.
        windows=(1, 2),
        encoder_heads=8,
        encoder_eps=1e-12,
        model_types=("swinv2",),
        huggingface="lgvit_edge.model.checkpoints.huggingface:swinv2_fields",
    ),
):
    register_family(_family)
