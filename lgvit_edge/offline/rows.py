"""One line of JSON for each image: its answer, or why there is none."""

from __future__ import annotations

import json
from typing import Any

from lgvit_edge.offline.listing import Listed
from lgvit_edge.runtime.result import Result

# What a row of answers has, and its type in Parquet; docs/folders.md explains it.
COLUMNS = {
    "path": "string",
    "class_index": "int32",
    "label": "string",
    "confidence": "double",
    "measure": "string",
    "exit": "int32",
    "block": "int32",
    "pass_number": "int32",
    "stopped": "string",
}
TIMES = {"latency_ms": "double", "network_ms": "double"}  # where they are asked for
FAULT = "error"  # the key of a line without an answer
_DIGITS = {"confidence": 6, "latency_ms": 3, "network_ms": 3}


def answer(image: Listed, result: Result, *, times: bool) -> bytes:
    """Return the line of an answer."""
    found = result.to_json()
    row: dict[str, Any] = {"path": image.name}
    for name in [*COLUMNS, *(TIMES if times else ())][1:]:
        value = found[name]
        row[name] = round(value, _DIGITS[name]) if name in _DIGITS else value
    return _line(row)


def fault(image: Listed, reason: str) -> bytes:
    """Return the line of an image that cannot be read; the reason does not tell where it lies."""
    return _line({"path": image.name, FAULT: reason.replace(image.path, image.name)})


def _line(row: dict[str, Any]) -> bytes:
    return f"{json.dumps(row, allow_nan=False)}\n".encode("ascii")
