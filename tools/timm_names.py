"""Writes what timm's published names say of a model that its weights do not: run with timm.

    python tools/timm_names.py    # writes lgvit_edge/model/checkpoints/timm_names.json

timm's ``pretrained_cfg`` and the modules it builds are facts about published weights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lgvit_edge.benchmarks.experiments.published import import_timm
from lgvit_edge.model.checkpoints.timm_names import structure

OUT = Path(__file__).parent.parent / "lgvit_edge/model/checkpoints/timm_names.json"
MODULES = ("vision_transformer", "deit", "swin_transformer", "swin_transformer_v2", "beit", "eva")


def described(timm: Any, name: str) -> dict[str, Any] | None:
    """Returns what the weights of an architecture do not tell; None if it cannot be built."""
    import torch

    try:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False)
    except Exception as error:
        print(f"{name}: {type(error).__name__} {error}", file=sys.stderr)
        return None
    staged = hasattr(model, "layers")
    blocks = model.layers[0].blocks if staged else model.blocks
    block = blocks[0]
    attention, mlp = getattr(block, "attn", None), getattr(block, "mlp", None)
    last = next(m for m in reversed(list(model.modules())) if "Norm" in type(m).__name__)
    about = {
        "width": model.embed_dim,
        "depth": sum(len(stage.blocks) for stage in model.layers) if staged else len(blocks),
        "num_heads": getattr(attention, "num_heads", 0),
        "block": type(block).__name__,
        "attention": type(attention).__name__,
        "mlp": type(mlp).__name__,
        "activation": _activation(mlp),
        "eps": getattr(last, "eps", 0.0),
        "norm": type(last).__name__,
        # With "+prefix", class token and registers are pooled too.
        "pooling": getattr(model, "global_pool", "")
        + "+prefix" * getattr(model, "pool_include_prefix", False),
        "rotation": _rotation(getattr(model, "rope", None)),
        "structure": structure(model.state_dict()),
        "weights": {},
    }
    if hasattr(attention, "pretrained_window_size"):  # Swin V2; other weights tell their windows
        first = [stage.blocks[0].attn for stage in model.layers]
        about["window"] = first[0].window_size[0]
        about["pretrained_windows"] = [each.pretrained_window_size[0] for each in first]
    for full in timm.list_models(f"{name}.*", pretrained=True) or []:
        cfg = timm.get_pretrained_cfg(full)
        about["weights"][full.partition(".")[2]] = {
            "classes": cfg.num_classes,
            "size": list(cfg.input_size),
            "interpolation": cfg.interpolation,
            "crop_pct": cfg.crop_pct,
            "crop_mode": cfg.crop_mode,
            "mean": list(cfg.mean),
            "std": list(cfg.std),
        }
    return about


def _rotation(rope: Any) -> dict[str, Any] | None:
    if rope is None:
        return None
    names = ("temperature", "rotate_half", "ref_feat_shape", "grid_offset", "grid_indexing")
    about = {name: getattr(rope, name, None) for name in (*names, "grid_type", "normalize_coords")}
    return {"class": type(rope).__name__, **about}


def _activation(mlp: Any) -> str:
    act = getattr(mlp, "act", None)
    name = type(act).__name__
    if name == "GELU" and getattr(act, "approximate", "none") == "tanh":
        return "GELUTanh"
    return name


def main() -> None:
    """Writes the file."""
    timm = import_timm()
    names = [name for module in MODULES for name in timm.list_models(module=module)]
    rows = {name: about for name in sorted(names) if (about := described(timm, name))}
    text = ",\n".join(f"{json.dumps(n)}: {json.dumps(row)}" for n, row in rows.items())
    OUT.write_text(f"{{\n{text}\n}}\n", encoding="utf-8")
    print(f"{len(rows)} architectures, timm {timm.__version__}")


if __name__ == "__main__":
    main()
