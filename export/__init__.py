"""From a trained LGViT to a verified bundle of ONNX graphs."""

from lgvit_edge.export.exporter import ExportOptions, export_bundle

__all__ = ["ExportOptions", "export_bundle"]
