"""Early-exit Vision Transformers as engine chains for edge devices.

Importing this package imports nothing heavy; the names below are loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lgvit_edge.errors import LGViTEdgeError
    from lgvit_edge.runtime import Result, Session

__version__ = "0.1.0"
__all__ = ["LGViTEdgeError", "Result", "Session", "__version__"]

_HOMES = {
    "LGViTEdgeError": "lgvit_edge.errors",
    "Result": "lgvit_edge.runtime",
    "Session": "lgvit_edge.runtime",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
