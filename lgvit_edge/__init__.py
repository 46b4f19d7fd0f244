"""Early-exit Vision Transformers as engine chains for edge devices.

Importing this package loads nothing heavy: each name below is loaded at its first use.
docs/api.md explains the names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lgvit_edge._support.lazy import lazily
from lgvit_edge.errors import (
    BackendError,
    BuildError,
    BundleError,
    CheckpointError,
    ConfigError,
    DataError,
    ExportError,
    LGViTEdgeError,
    MissingDependency,
    ParityError,
    SinkError,
    SourceError,
    StalledError,
    TrainingError,
    TuningError,
    UnknownHeadsError,
    UpstreamError,
    UsageError,
)

if TYPE_CHECKING:
    from lgvit_edge.camera import Camera as Camera
    from lgvit_edge.export import BuilderOptions as BuilderOptions
    from lgvit_edge.export import ExportOptions as ExportOptions
    from lgvit_edge.export import build_engines as build_engines
    from lgvit_edge.export import export_bundle as export_bundle
    from lgvit_edge.images.preprocess import load_rgb as load_rgb
    from lgvit_edge.model import load_checkpoint as load_checkpoint
    from lgvit_edge.policies import Confidence as Confidence
    from lgvit_edge.policies import Ensemble as Ensemble
    from lgvit_edge.policies import Entropy as Entropy
    from lgvit_edge.policies import FixedExit as FixedExit
    from lgvit_edge.policies import Memory as Memory
    from lgvit_edge.policies import Never as Never
    from lgvit_edge.policies import Patience as Patience
    from lgvit_edge.policies import PatientConfidence as PatientConfidence
    from lgvit_edge.policies import Policy as Policy
    from lgvit_edge.runtime import Result as Result
    from lgvit_edge.runtime import Session as Session
    from lgvit_edge.runtime import Statistics as Statistics
    from lgvit_edge.runtime import StreamError as StreamError
    from lgvit_edge.runtime import TargetRate as TargetRate
    from lgvit_edge.runtime import TensorRTOptions as TensorRTOptions
    from lgvit_edge.runtime import register_backend as register_backend
    from lgvit_edge.serving import SplitSession as SplitSession
    from lgvit_edge.serving import Upstream as Upstream
    from lgvit_edge.training import TrainingConfig as TrainingConfig
    from lgvit_edge.training import train as train
    from lgvit_edge.tuning.collect import collect as collect
    from lgvit_edge.tuning.goals import Goal as Goal
    from lgvit_edge.tuning.tune import TuneOptions as TuneOptions
    from lgvit_edge.tuning.tune import tune as tune

__version__ = "0.1.0"
__all__ = [
    "BackendError",
    "BuildError",
    "BundleError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ExportError",
    "LGViTEdgeError",
    "MissingDependency",
    "ParityError",
    "SinkError",
    "SourceError",
    "StalledError",
    "TrainingError",
    "TuningError",
    "UnknownHeadsError",
    "UpstreamError",
    "UsageError",
    "__version__",
]

_HOMES = {
    "lgvit_edge.camera": ("Camera",),
    "lgvit_edge.export": ("BuilderOptions", "ExportOptions", "build_engines", "export_bundle"),
    "lgvit_edge.images.preprocess": ("load_rgb",),
    "lgvit_edge.model": ("load_checkpoint",),
    "lgvit_edge.policies": (
        "Confidence",
        "Ensemble",
        "Entropy",
        "FixedExit",
        "Memory",
        "Never",
        "Patience",
        "PatientConfidence",
        "Policy",
    ),
    "lgvit_edge.runtime": (
        "Result",
        "Session",
        "Statistics",
        "StreamError",
        "TargetRate",
        "TensorRTOptions",
        "register_backend",
    ),
    "lgvit_edge.serving": ("SplitSession", "Upstream"),
    "lgvit_edge.training": ("TrainingConfig", "train"),
    "lgvit_edge.tuning.collect": ("collect",),
    "lgvit_edge.tuning.goals": ("Goal",),
    "lgvit_edge.tuning.tune": ("TuneOptions", "tune"),
}
__all__ += [name for names in _HOMES.values() for name in names]
__getattr__, __dir__ = lazily(__name__, _HOMES)
