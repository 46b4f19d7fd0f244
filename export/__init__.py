"""Exports a trained LGViT as a verified bundle of ONNX graphs, and compiles TensorRT engines.

Exporting needs torch, compiling engines must not (it runs on devices), so names load when used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lgvit_edge._support.lazy import lazily

if TYPE_CHECKING:
    from lgvit_edge.export.bundle import ExportOptions, export_bundle
    from lgvit_edge.export.source import models_to_export
    from lgvit_edge.export.tensorrt.build import build_engines
    from lgvit_edge.export.tensorrt.builder import BuilderOptions

__all__ = ["BuilderOptions", "ExportOptions", "build_engines", "export_bundle", "models_to_export"]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "lgvit_edge.export.bundle": ("ExportOptions", "export_bundle"),
        "lgvit_edge.export.source": ("models_to_export",),
        "lgvit_edge.export.tensorrt.build": ("build_engines",),
        "lgvit_edge.export.tensorrt.builder": ("BuilderOptions",),
    },
)
