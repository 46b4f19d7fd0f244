"""Writes Protocol Buffers' text format, which Triton's ``config.pbtxt`` is in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


class Word(str):
    """A value that is written without quotes: a name of an enumeration."""


def dumps(message: Mapping[str, Any]) -> str:
    """Return a message as text, a field a line.

    Values are messages (dicts), text, numbers, booleans, ``Word`` and lists of these, for fields
    that are repeated.
    """
    return "".join(f"{line}\n" for line in _fields(message))


def _fields(message: Mapping[str, Any]) -> Iterator[str]:
    for name, value in message.items():
        several = isinstance(value, Sequence) and not isinstance(value, str)
        if several and value and not isinstance(value[0], Mapping):
            yield f"{name}: [{', '.join(map(_scalar, value))}]"
            continue
        for each in value if several else [value]:
            if isinstance(each, Mapping):
                yield f"{name} {{"
                yield from (f"  {line}" for line in _fields(each))
                yield "}"
            else:
                yield f"{name}: {_scalar(each)}"


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and not isinstance(value, Word):
        return f'"{"".join(map(_letter, value))}"'
    return str(value)


def _letter(letter: str) -> str:
    if letter in '"\\' or not letter.isprintable():
        return "".join(f"\\{byte:03o}" for byte in letter.encode("utf-8", "replace"))
    return letter
