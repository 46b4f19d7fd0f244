"""How a session is opened, here or on another machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.errors import BundleError
from lgvit_edge.policies import Policy, as_policy
from lgvit_edge.runtime import Session
from lgvit_edge.runtime.precision import bundle_policy


@dataclass(frozen=True)
class Opening:
    """The arguments of ``Session.open``, which can be sent to another process.

    Attributes:
        engines: the bundle's folder.
        policy: decides where images stop, as text or as such; None for the bundle's.
        point: instead, the name of an operating point.
        options: the other arguments, by name.
    """

    engines: str
    policy: Policy | str | None = None
    point: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def policy_of(self, manifest: Manifest) -> Policy:
        """Return the policy that a session of this bundle would have; raises as ``open`` does."""
        if self.policy is None:
            return bundle_policy(manifest, self.point)
        policy = as_policy(self.policy)
        policy.start(len(manifest.segments) - 1)
        return policy

    def open(self, identity: str) -> Session:
        """Open the session; raises as ``Session.open`` does.

        Raises:
            BundleError: also if it is not the bundle with this ``identity``.
        """
        session = Session.open(self.engines, policy=self.policy, point=self.point, **self.options)
        if (found := session.manifest.identity) != identity:
            session.close()
            raise BundleError(
                f"{self.engines} is another bundle than the job's: expected {identity[:16]}, found "
                f"{found[:16]}; copy the job's bundle there"
            )
        return session
