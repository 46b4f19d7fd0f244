"""Reads policies from JSON in a manifest, and from text typed on a command line."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from lgvit_edge.errors import UsageError
from lgvit_edge.policies.base import POLICIES, Policy


def from_json(data: Any) -> Policy:
    """Returns the policy that ``Policy.to_json`` wrote.

    Raises:
        UsageError: unknown name, unknown or wrongly typed parameter.
    """
    name = data.get("name") if isinstance(data, dict) else None
    kind = POLICIES.get(name) if isinstance(name, str) else None
    if kind is None:
        raise UsageError(f"a policy's name must be one of {', '.join(POLICIES)}, found {name!r}")
    names = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k != "name"}
    if extra := sorted(values.keys() - names):
        raise UsageError(f"policy {name} has no {', '.join(extra)}; it has {sorted(names)}")
    return kind(**values)


def as_policy(policy: object) -> Policy:
    """Returns a policy that was given as such, or as the text that ``parse`` takes.

    Raises:
        UsageError: it is neither.
    """
    if isinstance(policy, str):
        return parse(policy)
    if isinstance(policy, Policy):
        return policy
    raise UsageError(
        f"expected a policy, such as Confidence(0.8) or 'confidence:0.8'; found {policy!r}"
    )


def described() -> str:
    """Returns an example of every policy and when it stops, for the help of commands."""
    return "; ".join(f"{kind.example} ({kind.help})" for kind in POLICIES.values())


def typed(data: dict[str, Any]) -> str:
    """Returns what ``parse`` takes for a policy, given what its ``to_json`` wrote."""
    values = [v if isinstance(v, list) else [v] for name, v in data.items() if name != "name"]
    return ":".join([str(data["name"]), *(",".join(map(str, value)) for value in values)])


def parse(text: str) -> Policy:
    """Returns the policy typed as its name and its parameters in order, with colons between.

    For instance ``confidence:0.8``, ``confidence:0.8:0.5`` (at temperature 0.5) or
    ``entropy:0.6,0.5`` (two exits).

    Raises:
        UsageError: the text has another form.
    """
    name, *arguments = text.split(":")
    kind = POLICIES.get(name)
    parameters = fields(kind) if kind else ()  # type: ignore[arg-type]
    if kind is None or len(arguments) > len(parameters):
        *others, last = (kind.example for kind in POLICIES.values())
        raise UsageError(f"expected a policy such as {', '.join(others)} or {last}; found {text!r}")
    values: dict[str, Any] = {}
    try:
        for parameter, argument in zip(parameters, arguments, strict=False):
            if isinstance(parameter.default, int):
                values[parameter.name] = int(argument)
            else:
                parts = [float(part) for part in argument.split(",")]
                values[parameter.name] = tuple(parts) if len(parts) > 1 else parts[0]
    except ValueError:
        raise UsageError(f"{text!r}: {argument!r} is not a number") from None
    return kind(**values)
