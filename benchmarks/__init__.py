"""Measures what the chain gains over the baseline, and reports it."""

from lgvit_edge.benchmarks.measure import measure_exits, measure_images
from lgvit_edge.benchmarks.profiling import measure_layers
from lgvit_edge.benchmarks.report.terminal import print_report

__all__ = ["measure_exits", "measure_images", "measure_layers", "print_report"]
