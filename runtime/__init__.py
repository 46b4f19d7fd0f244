"""The torch-free runtime: open a bundle, predict, stop after the first confident exit.

Names load when first used, so that ``lgvit-edge --help`` needs nothing of the runtime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lgvit_edge._support.lazy import lazily

if TYPE_CHECKING:
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
    from lgvit_edge.runtime.backends.base import Backend, Candidate, Chain, ChainOptions
    from lgvit_edge.runtime.backends.registry import register_backend
    from lgvit_edge.runtime.backends.tensorrt import TensorRTOptions
    from lgvit_edge.runtime.result import Pace, Result
    from lgvit_edge.runtime.session import Session
    from lgvit_edge.runtime.stats import Statistics
    from lgvit_edge.runtime.streams import StreamError
    from lgvit_edge.runtime.target_rate import TargetRate

__all__ = [
    "Backend",
    "Candidate",
    "Chain",
    "ChainOptions",
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
    "StreamError",
    "TargetRate",
    "TensorRTOptions",
    "register_backend",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "lgvit_edge.policies": (
            *("Confidence", "Ensemble", "Entropy", "FixedExit", "Never", "Patience"),
            *("PatientConfidence", "Policy"),
        ),
        "lgvit_edge.runtime.backends.base": ("Backend", "Candidate", "Chain", "ChainOptions"),
        "lgvit_edge.runtime.backends.registry": ("register_backend",),
        "lgvit_edge.runtime.backends.tensorrt": ("TensorRTOptions",),
        "lgvit_edge.runtime.result": ("Pace", "Result"),
        "lgvit_edge.runtime.session": ("Session",),
        "lgvit_edge.runtime.stats": ("Statistics",),
        "lgvit_edge.runtime.streams": ("StreamError",),
        "lgvit_edge.runtime.target_rate": ("TargetRate",),
    },
)
