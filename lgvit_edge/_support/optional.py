"""Imports of packages that only some users need."""

from __future__ import annotations

import importlib
from typing import Any

from lgvit_edge.errors import MissingDependency


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
