"""Published backbones by name."""

from __future__ import annotations

import dataclasses

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.errors import ConfigError
from lgvit_edge.images.spec import IMAGENET_PREPROCESS, Preprocess, usual_resize

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
ARCHITECTURES = (
    *(f"vit-{size}" for size in _VITS),
    *(f"deit-{size}{form}" for form in ("", "-distilled") for size in ("tiny", "small", "base")),
    *(f"swin-{size}" for size in _SWINS),
)


def architecture(name: str, *, num_classes: int = 1000, image_size: int = 224) -> LGViTConfig:
    """A published backbone by name, without exits, with the preprocessing it was trained with.

    Raises:
        ConfigError: the name is not one of ``ARCHITECTURES``, or the image size does not fit.
    """
    if name not in ARCHITECTURES:
        raise ConfigError(f"unknown architecture {name!r}; known: {', '.join(ARCHITECTURES)}")
    family, size, *distilled = name.split("-")
    preprocess = Preprocess() if family == "vit" else IMAGENET_PREPROCESS
    preprocess = dataclasses.replace(preprocess, resize=usual_resize(image_size))
    if family == "swin":
        width, depths, heads = _SWINS[size]
        return LGViTConfig(
            family=family,
            image_size=image_size,
            patch_size=4,
            hidden_size=width,
            num_blocks=sum(depths),
            num_heads=heads,
            intermediate_size=4 * width,
            num_classes=num_classes,
            prefix_tokens=0,
            layer_norm_eps=1e-5,
            depths=depths,
            stage_heads=tuple(heads << stage for stage in range(len(depths))),
            window_size=7 if image_size % 32 else image_size // 32,
            preprocess=preprocess,
        )
    width, depth, heads = _VITS[size]
    tokens = 2 if distilled else 1
    return LGViTConfig(
        family=family,
        image_size=image_size,
        patch_size=16,
        hidden_size=width,
        num_blocks=depth,
        num_heads=heads,
        intermediate_size=4 * width,
        num_classes=num_classes,
        prefix_tokens=tokens,
        classifiers=tokens,
        preprocess=preprocess,
    )
