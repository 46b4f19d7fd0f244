"""Objects that answer only to what NVIDIA's bindings answer to.

``Checked(real_class, behaviour)`` behaves as ``behaviour`` does, but has exactly the attributes of
``real_class``, and each call is held against the signature in its docstring: number and names of
arguments, and their kinds. So code that runs on such objects would have been understood by the
version of the library that the class was taken from.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Parameter:
    name: str
    kind: str  # last part of the annotation: SupportsInt, str, DataType...
    optional: bool


def signatures(function: Any) -> list[list[Parameter]]:
    """The overloads in a pybind11 docstring, without ``self``."""
    name = function.__name__
    lines = re.findall(rf"(?:^|\d\. ){name}\((.*)\)(?: ->.*)?$", function.__doc__ or "", re.M)
    return [_parameters(line) for line in lines if not line.startswith("*args")]


def _parameters(text: str) -> list[Parameter]:
    parts, depth, current = [], 0, ""
    for character in text:
        depth += (character in "([<{") - (character in ")]>}")
        if character == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += character
    parts = [part.strip() for part in (*parts, current) if part.strip()]
    found = []
    for part in parts:
        name, _, rest = part.partition(":")
        annotation, equals, _ = rest.partition(" = ")
        kind = annotation.strip().split("[")[0].split(".")[-1].split("::")[-1]
        found.append(Parameter(name.strip(), kind, bool(equals)))
    return found[1:] if found and found[0].name == "self" else found


def kinds(value: Any) -> set[str]:
    """What the bindings' annotations may call this value."""
    if isinstance(value, Checked):
        return {cls.__name__ for cls in object.__getattribute__(value, "_real").__mro__}
    names = {cls.__name__ for cls in type(value).__mro__}
    extra = {
        "int": {"SupportsInt", "capsule", "CapsuleType", "SupportsIndex"},
        "bytes": {"buffer", "Buffer"},
        "tuple": {"Dims", "Sequence", "List"},
        "str": {"str"},
        "bool": {"bool"},
    }
    for name in list(names):
        names |= extra.get(name, set())
    return names


def check_call(function: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Raise TypeError, as pybind11 would, unless an overload takes these arguments."""
    overloads = signatures(function)
    assert overloads, f"no signature in the docstring of {function}"
    for parameters in overloads:
        if len(arguments) > len(parameters):
            continue
        given = dict(zip((p.name for p in parameters), arguments, strict=False))
        if given.keys() & keywords.keys() or keywords.keys() - {p.name for p in parameters}:
            continue
        given |= keywords
        if all(
            p.kind in kinds(given[p.name]) if p.name in given else p.optional for p in parameters
        ):
            return
    raise TypeError(f"{function.__name__}{arguments} {keywords}: none of {overloads}")


class Checked:
    """See the module."""

    def __init__(self, real: type, behaviour: Any) -> None:
        object.__setattr__(self, "_real", real)
        object.__setattr__(self, "_behaviour", behaviour)

    def __getattr__(self, name: str) -> Any:
        real = object.__getattribute__(self, "_real")
        behaviour = object.__getattribute__(self, "_behaviour")
        member = getattr(real, name)  # AttributeError, as from the real thing
        if isinstance(member, property):
            return getattr(behaviour, name)
        method = getattr(behaviour, name)

        @functools.wraps(method)
        def call(*arguments: Any, **keywords: Any) -> Any:
            check_call(member, arguments, keywords)
            return method(*arguments, **keywords)

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        member = getattr(object.__getattribute__(self, "_real"), name)
        assert isinstance(member, property), f"{name} is no property"
        if member.fset is None:
            raise AttributeError(f"can't set attribute {name!r}")
        setattr(object.__getattribute__(self, "_behaviour"), name, value)


def behaviour(checked: Any) -> Any:
    """What stands behind a ``Checked``."""
    return object.__getattribute__(checked, "_behaviour")
