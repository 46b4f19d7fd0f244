"""Imports of optional packages, made only where they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from lgvit_edge.errors import ConfigError, MissingDependency


def require(module: str, *, extra: str) -> Any:
    """Import ``module``, or say which extra of lgvit-edge installs it.

    Raises:
        MissingDependency: the module, or something it needs, cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        reason = "is not installed" if isinstance(error, ModuleNotFoundError) else "is broken"
        raise MissingDependency(
            f"{module} is needed here and {reason} ({error}); "
            f"run: pip install 'lgvit-edge[{extra}]'"
        ) from error


def try_import(module: str) -> Any:
    """Return the imported module, or the ImportError that prevented it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        return error
    except Exception as error:  # a broken installation raises anything: OSError, AttributeError
        return ImportError(f"{type(error).__name__}: {error}")


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
