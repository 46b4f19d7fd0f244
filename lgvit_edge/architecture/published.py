"""Configurations of published backbones by name."""

from __future__ import annotations

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.architecture.families import FAMILIES
from lgvit_edge.errors import ConfigError


def architectures() -> tuple[str, ...]:
    """Returns the names of all published backbones."""
    return tuple(name for family in FAMILIES.values() for name in family.architectures)


def architecture(name: str, *, num_classes: int = 1000, image_size: int = 224) -> LGViTConfig:
    """Returns a published backbone, without exits, with the preprocessing of its training.

    Raises:
        ConfigError: the name is not one of ``architectures()``, or the image size does not fit.
    """
    for family in FAMILIES.values():
        if name in family.architectures:
            return LGViTConfig(
                family=family.name,
                image_size=image_size,
                num_classes=num_classes,
                preprocess=family.usual_preprocess(image_size),
                **family.architectures[name](image_size),
            )
    raise ConfigError(f"unknown architecture {name!r}; known: {', '.join(architectures())}")
