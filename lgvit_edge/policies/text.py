"""Policies by name: as JSON in a manifest, and as typed on a command line."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from lgvit_edge.errors import UsageError
from lgvit_edge.policies.base import Policy
from lgvit_edge.policies.rules import (
    Confidence,
    Ensemble,
    Entropy,
    FixedExit,
    Never,
    Patience,
    PatientConfidence,
)

POLICIES: dict[str, type[Policy]] = {
    p.name: p
    for p in (Confidence, Entropy, Ensemble, Patience, PatientConfidence, FixedExit, Never)
}


def from_json(data: Any) -> Policy:
    """Build a policy from what ``Policy.to_json`` wrote.

    Raises:
        UsageError: unknown name, unknown or wrongly typed parameter.
    """
    name = data.get("name") if isinstance(data, dict) else None
    kind = POLICIES.get(name) if isinstance(name, str) else None
    if kind is None:
        raise UsageError(f"a policy's name must be one of {', '.join(POLICIES)}, found {name!r}")
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k != "name"}
    if extra := sorted(values.keys() - known):
        raise UsageError(f"policy {name} has no {', '.join(extra)}; it has {sorted(known)}")
    return kind(**values)


def parse(text: str) -> Policy:
    """A policy as typed: its name, then its parameters after colons.

    For instance ``confidence:0.8``, ``confidence:0.8:0.5`` (at temperature 0.5),
    ``entropy:0.6,0.5``, ``ensemble:0.9:0.5`` (decay 0.5), ``patience:2``,
    ``patient_confidence:0.5:2``, ``fixed:3`` or ``never``.

    Raises:
        UsageError: not of this form.
    """
    name, *arguments = text.split(":")
    kind = POLICIES.get(name)
    parameters = fields(kind) if kind else ()  # type: ignore[arg-type]
    if kind is None or len(arguments) > len(parameters):
        raise UsageError(
            f"expected a policy such as confidence:0.8, entropy:0.6, ensemble:0.9:0.5, "
            f"patience:2, patient_confidence:0.5:2, fixed:3 or never; found {text!r}"
        )
    try:
        values: dict[str, Any] = {}
        for field, argument in zip(parameters, arguments, strict=False):
            if isinstance(field.default, int):
                values[field.name] = int(argument)
            else:
                numbers = tuple(float(part) for part in argument.split(","))
                values[field.name] = numbers if len(numbers) > 1 else numbers[0]
    except ValueError:
        raise UsageError(f"{text!r}: {argument!r} is not a number") from None
    return kind(**values)
