"""Measures a device from end to end and packs what it found: ``lgvit-edge device-report``."""

from lgvit_edge.benchmarks.device.report import Options, device_report

__all__ = ["Options", "device_report"]
