"""The torch-free runtime: open a bundle, predict, stop after the first confident exit.

Names load when first used, so that ``lgvit-edge --help`` needs nothing of the runtime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lgvit_edge._support.lazy import lazily

if TYPE_CHECKING:
    from lgvit_edge.policies import Confidence as Confidence
    from lgvit_edge.policies import Ensemble as Ensemble
    from lgvit_edge.policies import Entropy as Entropy
    from lgvit_edge.policies import FixedExit as FixedExit
    from lgvit_edge.policies import Memory as Memory
    from lgvit_edge.policies import Never as Never
    from lgvit_edge.policies import Patience as Patience
    from lgvit_edge.policies import PatientConfidence as PatientConfidence
    from lgvit_edge.policies import Policy as Policy
    from lgvit_edge.runtime.backends.base import Backend as Backend
    from lgvit_edge.runtime.backends.base import Candidate as Candidate
    from lgvit_edge.runtime.backends.base import Chain as Chain
    from lgvit_edge.runtime.backends.base import ChainOptions as ChainOptions
    from lgvit_edge.runtime.backends.base import TensorRTOptions as TensorRTOptions
    from lgvit_edge.runtime.backends.registry import register_backend as register_backend
    from lgvit_edge.runtime.reading import StreamError as StreamError
    from lgvit_edge.runtime.result import Pace as Pace
    from lgvit_edge.runtime.result import Result as Result
    from lgvit_edge.runtime.session import Session as Session
    from lgvit_edge.runtime.stats import Statistics as Statistics
    from lgvit_edge.runtime.target_rate import TargetRate as TargetRate

_HOMES = {
    "lgvit_edge.policies": (
        *("Confidence", "Ensemble", "Entropy", "FixedExit", "Memory", "Never", "Patience"),
        *("PatientConfidence", "Policy"),
    ),
    "lgvit_edge.runtime.backends.base": (
        "Backend",
        "Candidate",
        "Chain",
        "ChainOptions",
        "TensorRTOptions",
    ),
    "lgvit_edge.runtime.backends.registry": ("register_backend",),
    "lgvit_edge.runtime.reading": ("StreamError",),
    "lgvit_edge.runtime.result": ("Pace", "Result"),
    "lgvit_edge.runtime.session": ("Session",),
    "lgvit_edge.runtime.stats": ("Statistics",),
    "lgvit_edge.runtime.target_rate": ("TargetRate",),
}
__all__ = [name for names in _HOMES.values() for name in names]
__getattr__, __dir__ = lazily(__name__, _HOMES)
