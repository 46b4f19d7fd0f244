"""Finds a bundle that was typed the way another command takes it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import Any

from lgvit_edge.bundle.layout import MANIFEST

_OPTION = "--engines"


def misplaced(name: str, parameters: Sequence[Any], arguments: list[str]) -> str | None:
    """Return the right line for one that names the bundle elsewhere; None where there is no need.

    Commands that run a bundle take it as ``--engines``; those that it is the subject of, as their
    argument. ``parameters`` are typer's, of the command ``name``, such as ``bundle sign``.
    """
    engines = next((p for p in parameters if p.name == "engines"), None)
    has_arguments = any(p.param_type_name == "argument" for p in parameters)
    typed = next((i for i, a in enumerate(arguments) if a.partition("=")[0] == _OPTION), None)
    if engines is None and has_arguments and typed is not None:
        _, equals, value = arguments[typed].partition("=")
        right = [*arguments[:typed], *([value] if equals else []), *arguments[typed + 1 :]]
        return f"{name} takes the bundle without {_OPTION}; run: {_line(name, right)}"
    if engines is None or engines.is_flag or typed is not None:
        return None
    bundles = [i for i, a in enumerate(arguments) if os.path.isfile(os.path.join(a, MANIFEST))]
    if not bundles and not has_arguments and arguments and not arguments[0].startswith("-"):
        bundles = [0]  # what else could it be
    if not bundles:
        return None
    if not engines.multiple:
        bundles = bundles[:1]
    rest = [argument for i, argument in enumerate(arguments) if i not in bundles]
    right = [*(part for i in bundles for part in (_OPTION, arguments[i])), *rest]
    return f"{name} takes the bundle as {_OPTION}; run: {_line(name, right)}"


def _line(name: str, arguments: list[str]) -> str:
    return shlex.join(["lgvit-edge", *name.split(), *arguments])
