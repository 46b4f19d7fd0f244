"""Imports of optional packages, made only where they are needed."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from lgvit_edge.errors import ConfigError, MissingDependency

# Both CPU backends report to their makers by default, and keep a number of this machine for that.
# ONNX Runtime, from 1.29 on, tells what it loads and how it runs, unless this variable is 1 when it
# is imported. OpenVINO tells that it was imported, if this package is there.
_ORT_REPORTS_NOT = "ORT_DISABLE_TELEMETRY"
_OPENVINO_REPORTS = "openvino_telemetry"


def require(module: str, *, extra: str) -> Any:
    """Import ``module``, or say which extra of lgvit-edge installs it.

    Raises:
        MissingDependency: the module, or something it needs, cannot be imported.
    """
    try:
        return _imported(module)
    except ImportError as error:
        reason = "is not installed" if isinstance(error, ModuleNotFoundError) else "is broken"
        raise MissingDependency(
            f"{module} is needed here and {reason} ({error}); "
            f"run: pip install 'lgvit-edge[{extra}]'"
        ) from error


def try_import(module: str) -> Any:
    """Return the imported module, or the ImportError that prevented it."""
    try:
        return _imported(module)
    except ImportError as error:
        return error
    except Exception as error:  # a broken installation raises anything: OSError, AttributeError
        return ImportError(f"{type(error).__name__}: {error}")


def _imported(module: str) -> Any:
    """Import a module; what it would report stays here."""
    package = module.partition(".")[0]
    if package == "onnxruntime":
        os.environ.setdefault(_ORT_REPORTS_NOT, "1")
    if package != "openvino" or _OPENVINO_REPORTS in sys.modules:
        return importlib.import_module(module)
    sys.modules[_OPENVINO_REPORTS] = None  # type: ignore[assignment]  # as if not installed
    try:
        return importlib.import_module(module)
    finally:
        del sys.modules[_OPENVINO_REPORTS]


def resolve(place: Any) -> Any:
    """Import what ``module`` or ``module:name`` names; return anything but a string unchanged.

    Raises:
        ConfigError: it cannot be imported.
    """
    if not isinstance(place, str):
        return place
    module, _, name = place.partition(":")
    try:
        imported = importlib.import_module(module)
        return getattr(imported, name) if name else imported
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"nothing can be imported from {place}: {error}") from error
