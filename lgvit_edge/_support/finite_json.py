"""JSON without NaN and Infinity, which the standard does not have and Python writes and reads."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn


def loads(text: str | bytes) -> Any:
    """Parse JSON in which every number is finite: ``NaN``, ``Infinity`` and ``1e999`` are refused.

    Raises:
        ValueError: it is not such JSON, or is nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def dumps(record: Any, *, indent: int | None = 1) -> str:
    """Write JSON for people and programs to read; a number that is not finite becomes ``null``."""
    try:
        return json.dumps(record, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_without(record), indent=indent, allow_nan=False)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"expected finite numbers, found {text[:40]}")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _without(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without(item) for key, item in value.items()}
    return [_without(item) for item in value] if isinstance(value, (list, tuple)) else value
