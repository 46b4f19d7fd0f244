"""Decides which precisions below float32 ``auto`` may take: those with evidence in the bundle."""

from __future__ import annotations

from collections.abc import Iterable
from shlex import quote
from typing import Any

from lgvit_edge.bundle.directory import Bundle
from lgvit_edge.bundle.evidence import Evidence
from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.policies import Policy, typed
from lgvit_edge.runtime.backends.base import Candidate, ChainOptions
from lgvit_edge.runtime.backends.registry import backend_of
from lgvit_edge.runtime.target_rate import TargetRate

FULL = "fp32"


def below_full(contenders: Iterable[Candidate]) -> list[Candidate]:
    """Return those that compute in less than float32, where their backend offers that too.

    A device that has nothing else is no choice of precision, and neither is one that was typed.
    """
    contenders = list(contenders)
    full = {each.backend for each in contenders if each.precision == FULL}
    return [each for each in contenders if each.backend in full and each.precision != FULL]


def policies_judged(manifest: Manifest) -> list[dict[str, Any]]:
    """Return the policies that decisions are compared at: the bundle's own and its points'."""
    policies = [manifest.policy]
    for point in manifest.points.values():
        if point.policy not in policies:
            policies.append(point.policy)
    return policies


def evidence_for(
    manifest: Manifest, way: Candidate, options: ChainOptions, policy: Policy
) -> Evidence | None:
    """Return what is known of a candidate on this hardware at a policy; None if nothing.

    Of a policy that moves along operating points, the weakest, and only if there is some for each.
    """
    hardware = backend_of(way.backend).hardware
    if hardware is None or not manifest.evidence:
        return None
    here = (way.backend, way.precision, hardware(options))
    known = [e for e in manifest.evidence if (e.backend, e.precision, e.hardware) == here]
    used = _used(policy, manifest)
    found = [evidence for evidence in known if evidence.policy in used]
    if not used or len(found) < len(used):
        return None
    return max(found, key=lambda evidence: (len(evidence.faults), -evidence.same_exit))


def _used(policy: Policy, manifest: Manifest) -> list[dict[str, Any]]:
    """Return the policies of the bundle that a policy may apply, each once."""
    if not isinstance(policy, TargetRate):
        return [policy.to_json()]
    names = manifest.points if policy.points is None else policy.points
    policies = [manifest.points[name].policy for name in names if name in manifest.points]
    return [each for i, each in enumerate(policies) if each not in policies[:i]]


def to_compare(bundle: Bundle, policy: Policy) -> str:
    """Return the command that compares decisions at a policy; empty if it is only exits in turn."""
    used, judged = _used(policy, bundle.manifest), policies_judged(bundle.manifest)
    if not used:
        return ""
    command = f"lgvit-edge doctor --engines {quote(str(bundle.root))} --data DIR"
    new = [each for each in used if each not in judged]  # at most one: points are judged
    return " ".join([command, *(f"--policy {quote(typed(each))}" for each in new)])
