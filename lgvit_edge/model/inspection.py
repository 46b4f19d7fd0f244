"""Describes a checkpoint in plain JSON types, for ``lgvit-edge info``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lgvit_edge.architecture.heads import HEAD_KINDS
from lgvit_edge.architecture.sizes import POOLINGS
from lgvit_edge.bundle.inspection import with_totals
from lgvit_edge.model.checkpoints.containers import Note, note_in_log
from lgvit_edge.model.checkpoints.loading import load_model
from lgvit_edge.model.lgvit import LGViT
from lgvit_edge.model.macs import model_costs
from lgvit_edge.model.segments import count_parameters, cut

_NAMES = ("index", "first_block", "last_block", "head")  # of a segment, as it calls them


def inspected(
    path: str | Path,
    *,
    classes: int | None = 1000,
    num_heads: int | None = None,
    use_ema: bool = False,
    preprocess: Mapping[str, Any] | None = None,
    note: Note = note_in_log,
) -> LGViT:
    """Loads a checkpoint of any origin, with or without exits.

    Weights without a classifier get one of ``classes``, or are refused without that number.
    ``preprocess`` is what ``Preprocess.changed`` takes, the rest as in ``load_model``.

    Raises:
        CheckpointError: it cannot be used.
    """
    model = load_model(path, num_heads=num_heads, classes=classes, use_ema=use_ema, note=note)
    if any(value is not None for value in (preprocess or {}).values()):
        spec = model.config.preprocess.changed(model.config.image_size, **(preprocess or {}))
        model.config = model.config.replace(preprocess=spec)
        note(f"{path}: as asked, images are prepared by: {spec.described(model.config.image_size)}")
    return model


def described(model: LGViT, path: str | Path) -> dict[str, Any]:
    """Describes a model that was read from ``path``, in plain JSON types."""
    config, costs, rows = model.config, model_costs(model), []
    for segment, macs in zip(cut(model), costs.segments, strict=True):
        row = {name: getattr(segment, name) for name in _NAMES}
        row |= {"macs": macs, "parameters": segment.parameters}
        if segment.exit is not None:
            if HEAD_KINDS[segment.head].size:
                row["size"] = segment.exit.size
            row["head_macs"] = costs.heads[segment.index]
        rows.append(row)
    return {
        "kind": "checkpoint",
        "path": str(path),
        "source": config.source,
        "family": config.family,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "hidden_size": config.hidden_size,
        "blocks": config.num_blocks,
        "attention_heads": config.num_heads,
        "exits": config.num_exits,
        "classes": config.num_classes,
        "parameters": count_parameters(model),
        "depths": list(config.depths),
        "window_size": config.window_size,
        "pooling": POOLINGS[config.pooling],
        "activation": config.activation,
        "preprocess": dataclasses.asdict(config.preprocess),
        "baseline": {
            "macs": costs.baseline,
            "published_macs": costs.published,
            "published_macs_without_attention_products": costs.published_without_products,
            "parameters": count_parameters(model.backbone),
        },
        "segments": with_totals(rows, costs.baseline),
    }
