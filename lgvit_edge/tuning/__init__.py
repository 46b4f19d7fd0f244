"""Searches operating points on the device at hand, and certifies their error."""

from lgvit_edge.tuning.collect import collect
from lgvit_edge.tuning.goals import Goal
from lgvit_edge.tuning.precisions import compare_precisions
from lgvit_edge.tuning.tune import Tuned, TuneOptions, tune

__all__ = ["Goal", "TuneOptions", "Tuned", "collect", "compare_precisions", "tune"]
