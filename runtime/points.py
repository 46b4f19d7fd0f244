"""Reads the policies stored in a bundle: its own, and those of its operating points."""

from __future__ import annotations

from lgvit_edge import policies
from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.errors import BundleError, UsageError
from lgvit_edge.policies import Policy


def bundle_policy(manifest: Manifest, point: str | None = None) -> Policy:
    """Return the policy of an operating point, or without one the bundle's own.

    Raises:
        UsageError: there is no such point.
        BundleError: the manifest's policy is invalid or does not fit its exits.
    """
    where, data = "manifest.policy", manifest.policy
    if point is not None:
        if point not in manifest.points:
            listed = ", ".join(manifest.points) or "none; run: lgvit-edge tune"
            raise UsageError(f"no operating point {point!r}; this bundle has {listed}")
        where, data = f"manifest.points.{point}.policy", manifest.points[point].policy
    try:
        policy = policies.from_json(data)
        policy.start(len(manifest.segments) - 1)
    except UsageError as error:
        raise BundleError(f"{where}: {error}") from None
    return policy
