"""Decides which precisions below float32 ``auto`` may take: those with evidence in the bundle."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from shlex import quote
from typing import Any

from lgvit_edge.bundle.directory import Bundle
from lgvit_edge.bundle.evidence import Evidence
from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.errors import BundleError, LGViTEdgeError, UsageError
from lgvit_edge.policies import Policy, from_json, typed
from lgvit_edge.runtime.backends.base import Candidate, ChainOptions
from lgvit_edge.runtime.backends.registry import AUTO, backend_of
from lgvit_edge.runtime.target_rate import TargetRate

FULL = "fp32"


@dataclass(frozen=True)
class Chosen:
    """The backend that a bundle runs on, and how ``auto`` came to its precision."""

    backend: str
    options: ChainOptions = field(default_factory=ChainOptions)  # to open it with
    hint: str = ""  # what would make a lower precision available, or why none is taken
    lowered: bool = False  # whether it is below float32, which was offered too
    asked: tuple[str, ChainOptions] = (AUTO, ChainOptions())  # what it was chosen for

    @property
    def lower(self) -> bool:
        """Return whether it computes float32 graphs in less, typed or chosen."""
        return self.options.precision not in (None, FULL)

    def evidence(self, manifest: Manifest, policy: Policy) -> Evidence | None:
        """Return what is known of its decisions; None if nothing, or in float32."""
        way = Candidate(self.backend, self.options.precision)
        return evidence_for(manifest, way, self.options, policy) if self.lower else None


def below_full(contenders: Iterable[Candidate]) -> list[Candidate]:
    """Return those that compute in less than float32, where their backend offers that too.

    A device that has nothing else is no choice of precision, and neither is one that was typed.
    """
    contenders = list(contenders)
    full = {each.backend for each in contenders if each.precision == FULL}
    return [each for each in contenders if each.backend in full and each.precision != FULL]


def bundle_policy(manifest: Manifest, point: str | None = None) -> Policy:
    """Return the policy of an operating point, or without one the bundle's own.

    Raises:
        UsageError: there is no such point.
        BundleError: the policy, or one that evidence is for, is invalid or does not fit the exits.
    """
    where, data = "manifest.policy", manifest.policy
    if point is not None:
        if point not in list(manifest.points):  # of any type
            listed = ", ".join(manifest.points) or "none; run: lgvit-edge tune"
            raise UsageError(f"no operating point {point!r}; this bundle has {listed}")
        where, data = f"manifest.points.{point}.policy", manifest.points[point].policy
    for index, evidence in enumerate(manifest.evidence):
        _fitting(f"manifest.evidence[{index}].policy", evidence.policy, manifest)
    return _fitting(where, data, manifest)


def _fitting(where: str, data: dict[str, Any], manifest: Manifest) -> Policy:
    try:
        policy = from_json(data)
        policy.start(len(manifest.segments) - 1)
    except UsageError as error:
        raise BundleError(f"{where}: {error}") from None
    return policy


def policies_judged(manifest: Manifest) -> list[Policy]:
    """Return the policies that decisions are compared at: the bundle's own and its points'.

    Certified points are left out, as ``auto`` takes no lower precision for them. Raises
    ``BundleError`` as ``bundle_policy``.
    """
    names = [None, *(n for n, point in manifest.points.items() if point.guarantee is None)]
    policies = [bundle_policy(manifest, name) for name in names]
    return [policy for i, policy in enumerate(policies) if policy not in policies[:i]]


def runs_here(backend: str, hardware: str, options: ChainOptions) -> bool:
    """Return whether this is the hardware that the backend computes on with these options."""
    try:
        named = backend_of(backend).hardware
        return named is not None and named(options) == hardware
    except LGViTEdgeError:  # not installed, or no such device
        return False


def evidence_for(
    manifest: Manifest, way: Candidate, options: ChainOptions, policy: Policy
) -> Evidence | None:
    """Return what is known of a candidate on this hardware at a policy; None if nothing.

    Of a policy that moves along operating points, the weakest, and only if there is some for each.
    A candidate that could not run has that as its evidence, whatever the policy.
    """
    hardware = backend_of(way.backend).hardware
    if hardware is None or not manifest.evidence:
        return None
    here = (way.backend, way.precision, hardware(options))
    known = [e for e in manifest.evidence if (e.backend, e.precision, e.hardware) == here]
    if failed := [evidence for evidence in known if evidence.failure]:
        return failed[0]
    used = _used(policy, manifest)
    if not used or not all(any(e.policy == each for e in known) for each in used):
        return None
    found = [evidence for evidence in known if evidence.policy in used]
    return max(found, key=lambda evidence: (len(evidence.faults), -evidence.same_exit))


def _used(policy: Policy, manifest: Manifest) -> list[dict[str, Any]]:
    """Return the policies of the bundle that a policy may apply, each once."""
    if not isinstance(policy, TargetRate):
        return [policy.to_json()]
    points = list(manifest.points)  # names that were given may be of any type
    names = points if policy.points is None else policy.points
    policies = [manifest.points[name].policy for name in names if name in points]
    return [each for i, each in enumerate(policies) if each not in policies[:i]]


def to_compare(bundle: Bundle, policy: Policy, asked: tuple[str, ChainOptions]) -> str:
    """Return the command that compares decisions at a policy, on the backend that was asked for.

    Empty if the policy is only exits in turn, which no evidence is kept of.
    """
    used = _used(policy, bundle.manifest)
    if not used:
        return ""
    points = bundle.manifest.points.values()
    judged = [bundle.manifest.policy, *(p.policy for p in points if p.guarantee is None)]
    command = f"lgvit-edge doctor --engines {quote(str(bundle.root))} --data DIR"
    new = [each for each in used if each not in judged]
    backend, options = asked
    given = {
        "backend": None if backend == AUTO else backend,
        "device": options.device,
        "threads": options.threads,
    }
    return " ".join(
        [
            command,
            *(f"--{name} {quote(str(value))}" for name, value in given.items() if value),
            *(f"--policy {quote(typed(each))}" for each in new[:1]),
        ]
    )
