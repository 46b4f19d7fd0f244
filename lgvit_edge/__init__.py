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
    TrainingError,
    TuningError,
    UsageError,
)

if TYPE_CHECKING:
    from lgvit_edge.export import BuilderOptions, ExportOptions, build_engines, export_bundle
    from lgvit_edge.images.preprocess import load_rgb
    from lgvit_edge.model import load_checkpoint
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
    from lgvit_edge.runtime import (
        Result,
        Session,
        Statistics,
        StreamError,
        TargetRate,
        TensorRTOptions,
        register_backend,
    )
    from lgvit_edge.training import TrainingConfig, train
    from lgvit_edge.tuning.collect import collect
    from lgvit_edge.tuning.goals import Goal
    from lgvit_edge.tuning.tune import TuneOptions, tune

__version__ = "0.1.0"
__all__ = ["__version__", "load_checkpoint", "load_rgb", "register_backend"]
__all__ += ["Result", "Session", "Statistics", "StreamError", "TargetRate", "TensorRTOptions"]
__all__ += ["Confidence", "Ensemble", "Entropy", "FixedExit", "Never", "Patience"]
__all__ += ["PatientConfidence", "Policy", "TrainingConfig", "train"]
__all__ += ["Goal", "TuneOptions", "collect", "tune"]
__all__ += ["BuilderOptions", "ExportOptions", "build_engines", "export_bundle"]
__all__ += ["BackendError", "BuildError", "BundleError", "CheckpointError", "ConfigError"]
__all__ += ["DataError", "ExportError", "LGViTEdgeError", "MissingDependency", "ParityError"]
__all__ += ["TrainingError", "TuningError", "UsageError"]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "lgvit_edge.export": ("BuilderOptions", "ExportOptions", "build_engines", "export_bundle"),
        "lgvit_edge.images.preprocess": ("load_rgb",),
        "lgvit_edge.model": ("load_checkpoint",),
        "lgvit_edge.policies": (
            *("Confidence", "Ensemble", "Entropy", "FixedExit", "Never", "Patience"),
            *("PatientConfidence", "Policy"),
        ),
        "lgvit_edge.runtime": (
            *("Result", "Session", "Statistics", "StreamError", "TargetRate"),
            *("TensorRTOptions", "register_backend"),
        ),
        "lgvit_edge.training": ("TrainingConfig", "train"),
        "lgvit_edge.tuning.collect": ("collect",),
        "lgvit_edge.tuning.goals": ("Goal",),
        "lgvit_edge.tuning.tune": ("TuneOptions", "tune"),
    },
)
