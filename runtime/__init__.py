"""The torch-free runtime: open a bundle, predict, stop after the first confident exit."""

from lgvit_edge.policies import (
    Confidence,
    Ensemble,
    Entropy,
    FixedExit,
    Never,
    Patience,
    PatientConfidence,
    Policy,
)
from lgvit_edge.runtime.backends.tensorrt import TensorRTOptions
from lgvit_edge.runtime.result import Pace, Result
from lgvit_edge.runtime.session import Session
from lgvit_edge.runtime.stats import Statistics
from lgvit_edge.runtime.target_rate import TargetRate

__all__ = [
    "Confidence",
    "Ensemble",
    "Entropy",
    "FixedExit",
    "Never",
    "Pace",
    "Patience",
    "PatientConfidence",
    "Policy",
    "Result",
    "Session",
    "Statistics",
    "TargetRate",
    "TensorRTOptions",
]
