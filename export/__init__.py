"""From a trained LGViT to a verified bundle of ONNX graphs, and from those to TensorRT engines.

Exporting needs torch, building engines must not (it runs on devices), so names load when used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lgvit_edge.export.bundle import ExportOptions, export_bundle
    from lgvit_edge.export.source import model_to_export
    from lgvit_edge.export.tensorrt.build import build_engines
    from lgvit_edge.export.tensorrt.builder import BuilderOptions

__all__ = ["BuilderOptions", "ExportOptions", "build_engines", "export_bundle", "model_to_export"]

_HOMES = {
    "BuilderOptions": "lgvit_edge.export.tensorrt.builder",
    "ExportOptions": "lgvit_edge.export.bundle",
    "build_engines": "lgvit_edge.export.tensorrt.build",
    "export_bundle": "lgvit_edge.export.bundle",
    "model_to_export": "lgvit_edge.export.source",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
