"""Makes the model a training starts from: a backbone with fresh exits, or a saved model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.architecture.published import architecture, architectures
from lgvit_edge.errors import UsageError
from lgvit_edge.model import LGViT, load_model


def attach_exits(
    backbone: LGViT,
    exits: Sequence[ExitConfig],
    *,
    num_classes: int | None = None,
    labels: Sequence[str] = (),
    seed: int = 777,
) -> LGViT:
    """Returns a new LGViT with the backbone's weights and fresh heads at ``exits``.

    Args:
        backbone: copied; its own heads, if any, are left behind.
        exits: block and head of each.
        num_classes: where it differs from the backbone's, the final classifier is fresh too and
            stage 1 has to train it.
        labels: class names; default: the backbone's, where the class count stays.
        seed: of the fresh weights.

    Raises:
        ConfigError: exits or labels do not fit the backbone.
    """
    old = backbone.config
    classes = old.num_classes if num_classes is None else num_classes
    labels = tuple(labels) or (old.labels if classes == old.num_classes else ())
    config = old.replace(exits=tuple(exits), num_classes=classes, labels=labels)
    model = seeded(config, seed)
    weights = {
        name: tensor
        for name, tensor in backbone.backbone.state_dict().items()
        if classes == old.num_classes or not name.startswith("final.classifier.")
    }
    model.backbone.load_state_dict(weights, strict=classes == old.num_classes)
    return model.eval()


def seeded(config: LGViTConfig, seed: int) -> LGViT:
    """Returns an LGViT with fresh weights, which depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LGViT(config)


def load_start(backbone: str, weights: Path | None, *, num_classes: int, seed: int) -> LGViT:
    """Loads the model that ``--backbone`` and ``--weights`` name.

    Args:
        backbone: an architecture, or the path of a checkpoint: ours, the authors', or a plain
            backbone of Hugging Face or timm.
        weights: such a path, where ``backbone`` is an architecture; None starts at random.
        num_classes: of a model that starts at random.
        seed: of a model that starts at random.

    Raises:
        UsageError: ``backbone`` is neither, or a path and ``weights`` are both given.
        CheckpointError: the checkpoint cannot be used.
    """
    if backbone in architectures():
        if weights is None:
            return seeded(architecture(backbone, num_classes=num_classes), seed)
        model = load_model(weights, arch=backbone)
        _check_architecture(model.config, backbone, weights)
        return model
    path = Path(backbone)
    if not path.exists():
        raise UsageError(
            f"--backbone {backbone}: expected a checkpoint's path or one of "
            f"{', '.join(architectures())}"
        )
    if weights is not None:
        raise UsageError(
            f"--backbone {backbone} is a checkpoint already; give its architecture with "
            "--weights, or leave --weights out"
        )
    return load_model(path)


def _check_architecture(config: LGViTConfig, name: str, weights: Path) -> None:
    expected = architecture(name)
    differing = [
        f"{field} {getattr(expected, field)}, found {getattr(config, field)}"
        for field in ("hidden_size", "num_blocks", "num_heads", "prefix_tokens")
        if getattr(expected, field) != getattr(config, field)
    ]
    if differing:
        raise UsageError(f"{weights} is no {name}: expected {'; '.join(differing)}")
