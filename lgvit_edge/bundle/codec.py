"""Conversion of frozen dataclasses to JSON and back, with every key and type checked.

Files may come from a stranger: decoding evaluates nothing, refuses unknown keys, and reports all
faults at once.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any, TypeVar, Union

from lgvit_edge._support import finite_json

T = TypeVar("T")
_MAX_ITEMS = 100_000  # no list or dict of a real manifest comes near


def to_json(value: Any) -> Any:
    """Convert a dataclass tree to plain dicts, lists and scalars."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    return value


def loads(
    cls: type[T],
    text: str | bytes,
    *,
    version: int,
    limit: int,
    where: str,
    cure: str,
    error: type[Exception],
) -> T:
    """Build the frozen dataclass ``cls`` from a file's content, or its first ``limit`` + 1 bytes.

    ``where`` names it in messages, and ``cure`` says what to do about it.

    Raises:
        error: the text has more than ``limit`` bytes, is not JSON, is not of schema ``version``, or
            ``from_json`` raises.
    """
    if len(text) > limit:
        raise error(f"{where} has more than the {limit} bytes it may have; {cure}")
    try:
        data = finite_json.loads(text)
    except ValueError as fault:
        raise error(f"{where} is not JSON: {fault}; {cure}") from None
    stored = data.get("schema_version") if isinstance(data, dict) else None
    if stored != version:
        raise error(f"{where}: expected schema version {version}, found {stored!r}; {cure}")
    return from_json(cls, data, where=where, error=error)


def from_json(cls: type[T], data: Any, *, where: str, error: type[Exception]) -> T:
    """Build ``cls`` from decoded JSON, or raise ``error`` with all faults at once."""
    faults: list[str] = []
    value = _decode(cls, data, where, faults)
    if faults:
        raise error("; ".join(faults))
    return typing.cast(T, value)


def _decode(kind: Any, data: Any, where: str, faults: list[str]) -> Any:
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(typing.cast(type, kind), data, where, faults)
    if origin in (Union, types.UnionType):
        return _decode_union(kind, data, where, faults)
    if origin is tuple:
        return _decode_tuple(kind, data, where, faults)
    if origin is dict:
        if not isinstance(data, dict) or len(data) > _MAX_ITEMS:
            return _wrong("an object", data, where, faults)
        item = typing.get_args(kind)[1]
        return {key: _decode(item, value, f"{where}.{key}", faults) for key, value in data.items()}
    if kind is Any:
        return data
    if kind is float and type(data) is int and abs(data) < 2**1000:  # more would overflow
        return float(data)
    if kind is float and isinstance(data, float) and not math.isfinite(data):
        return _wrong("a finite number", data, where, faults)
    if not isinstance(data, kind) or (kind is int and isinstance(data, bool)):
        return _wrong(_NAMES.get(kind, str(kind)), data, where, faults)
    return data


_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    bool: "true or false",
    type(None): "null",
}


def _decode_dataclass(kind: type, data: Any, where: str, faults: list[str]) -> Any:
    if not isinstance(data, dict):
        return _wrong("an object", data, where, faults)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    faults += [f"{where}: unknown key {key!r}" for key in data if key not in fields]
    before = len(faults)
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _decode(hints[name], data[name], f"{where}.{name}", faults)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            faults.append(f"{where}: missing key {name!r}")
    if len(faults) > before:
        return None
    try:
        return kind(**values)
    except ValueError as fault:
        faults.append(f"{where}: {fault}")
        return None


def _decode_union(kind: Any, data: Any, where: str, faults: list[str]) -> Any:
    attempts = []
    for option in typing.get_args(kind):
        tried: list[str] = []
        value = _decode(option, data, where, tried)
        if not tried:
            return value
        attempts.append(tried)
    # The first option is the informative one: unions here are "X or null" or "X or list of X".
    faults += attempts[0]
    return None


def _decode_tuple(kind: Any, data: Any, where: str, faults: list[str]) -> Any:
    args = typing.get_args(kind)
    if not isinstance(data, (list, tuple)) or len(data) > _MAX_ITEMS:
        return _wrong("a list", data, where, faults)
    if args[-1] is Ellipsis:
        args = (args[0],) * len(data)
    if len(args) != len(data):
        return _wrong(f"a list of {len(args)}", data, where, faults)
    return tuple(
        _decode(arg, item, f"{where}[{i}]", faults)
        for i, (arg, item) in enumerate(zip(args, data, strict=True))
    )


def _wrong(expected: str, value: Any, where: str, faults: list[str]) -> None:
    text = repr(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    faults.append(f"{where}: expected {expected}, found {text}")
