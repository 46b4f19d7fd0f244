"""The torch-free runtime: open a bundle, predict, stop after the first confident exit."""

from lgvit_edge.policy import (
    Confidence,
    Ensemble,
    Entropy,
    FixedExit,
    Never,
    Patience,
    PatientConfidence,
    Policy,
)
from lgvit_edge.runtime.pace import TargetRate
from lgvit_edge.runtime.result import Pace, Result
from lgvit_edge.runtime.session import Session
from lgvit_edge.runtime.stats import Statistics
from lgvit_edge.runtime.trt_chain import TensorRTOptions

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
