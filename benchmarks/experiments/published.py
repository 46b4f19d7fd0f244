"""Compares timm's published architectures with ours, each by its name.

Two questions for each: do the names and shapes of its weights fit at full size, and does a smaller
one, of random weights, give timm's own logits? Nothing is downloaded.
"""

from __future__ import annotations

import enum
import importlib.abc
import importlib.machinery
import json
import sys
import types
from collections.abc import MutableSequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.errors import CheckpointError, MissingDependency
from lgvit_edge.model import LGViT, baseline, load_backbone
from lgvit_edge.model.checkpoints.timm import Hints, tabled, timm_config
from lgvit_edge.model.checkpoints.timm_names import published, structure
from lgvit_edge.model.checkpoints.timm_weights import arranged, named_as_eva, plain
from lgvit_edge.model.checkpoints.timm_weights import timm_names as sources

CLASSES = 7
SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 4}
SMALL_SWIN = {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [2, 2, 4, 4], "window_size": 4}
TOLERANCE = 1e-5  # of logits about 1 in size


class _Torchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds empty modules for ``torchvision`` and all below it."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.partition(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class _Empty(types.ModuleType):
    __path__: MutableSequence[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "InterpolationMode":
            return enum.Enum(name, "NEAREST BILINEAR BICUBIC BOX HAMMING LANCZOS")
        return type(name, (), {})


def import_timm() -> Any:
    """Returns timm, whether or not torchvision is installed."""
    sys.meta_path.append(_Torchvision())  # after the finders of what is installed
    try:
        import timm
    except ImportError as error:
        raise MissingDependency(f"timm is needed ({error}); run: make dev") from None
    return timm


def full_size(timm: Any, name: str) -> LGViTConfig:
    """Returns the configuration that timm's name and its full-size weights, unfilled, give.

    Raises:
        CheckpointError: its names, shapes or parts are not read.
    """
    row = published(name)
    # The tables of a Swin V2 are computed from its weights.
    second = row is not None and row.block == "SwinTransformerV2Block"
    with torch.device("cpu" if second else "meta"):
        weights = timm.create_model(name).state_dict()
    hints = Hints(
        arch=name,
        structure=structure(weights),
        eva=named_as_eva(weights),
        fresh=not any(key.startswith("head") for key in weights),
    )
    with torch.device("cpu" if second else "meta"):
        state = plain(weights, 1000, _unheard)
        config = timm_config(state, hints, _unheard)
        state = tabled(arranged(state, config), config, hints)
    with torch.device("meta"):
        model = LGViT(config)
    found = sources(model, state)
    for key, tensor in model.state_dict().items():
        theirs: tuple[str, ...] = found[key].names if key in found else ()
        if missing := [one for one in theirs if one not in state]:
            raise CheckpointError(f"{name}: {missing[0]} is missing")
        if not theirs and tensor.numel():
            raise CheckpointError(f"{name}: {key} has no weights")
    return config


@torch.no_grad()
def difference(timm: Any, name: str, folder: Path) -> float:
    """Returns the largest difference of logits between timm's model, made smaller, and ours.

    Ours is compared as it is trained and as it is exported.

    Raises:
        CheckpointError: a part of it is not read.
    """
    row = published(name)
    swin = row is not None and row.block.startswith("SwinTransformer")
    with torch.device("meta"):
        patch = timm.create_model(name).patch_embed.patch_size[0]
    small = {"img_size": patch * (16 if swin else 3), **(SMALL_SWIN if swin else SMALL)}
    theirs = filled(timm.create_model(name, num_classes=CLASSES, **small))
    folder.mkdir()
    about = {"architecture": name, "model_args": small}
    (folder / "config.json").write_text(json.dumps(about), encoding="utf-8")
    state = {key: tensor.contiguous() for key, tensor in theirs.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    ours = load_backbone(folder, note=_unheard)
    size = ours.config.image_size
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected, exported = theirs(pixels), baseline(ours, input="float32")
    return max(float((model(pixels) - expected).abs().max()) for model in (ours, exported))


@torch.no_grad()
def filled(model: torch.nn.Module) -> torch.nn.Module:
    """Fills timm's model with random weights that look trained, in eval mode."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        wide = parameter.ndim > 1 and "token" not in name and "pos_embed" not in name
        parameter.normal_(0, parameter[0].numel() ** -0.5 if wide else 0.3, generator=generator)
        if not wide and name.endswith("weight"):
            parameter.add_(1)  # a norm's
    return model.eval()


def _unheard(text: str) -> None:
    pass
