"""How a model in Triton runs its bundle, and the parameters of ``config.pbtxt`` that say so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.errors import UsageError
from lgvit_edge.policies import Policy, as_policy
from lgvit_edge.runtime.backends.base import ChainOptions
from lgvit_edge.runtime.precision import bundle_policy


@dataclass(frozen=True)
class RunParameters:
    """Holds what ``Session.open`` takes by these names; None where that decides."""

    backend: str | None = None
    threads: int | None = None
    device: str | None = None
    precision: str | None = None
    point: str | None = None
    policy: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no backend takes, and two ways to say when images stop."""
        self.chain_options()
        if self.policy is not None and self.point is not None:
            raise UsageError("give a policy or an operating point, not both")

    @classmethod
    def read(cls, parameters: Mapping[str, str]) -> RunParameters:
        """Return what the parameters of a configuration say; others are not looked at."""
        known: dict[str, Any] = {name: parameters.get(name) for name in cls.__dataclass_fields__}
        if (threads := known["threads"]) is not None:
            if not threads.isdecimal():
                raise UsageError(
                    f"the parameter threads in config.pbtxt must be a number, found {threads!r}"
                )
            known["threads"] = int(threads)
        return cls(**known)

    @property
    def given(self) -> dict[str, Any]:
        """Return those that are not None, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def chain_options(self) -> ChainOptions:
        """Return the options of the backend among them."""
        return ChainOptions(threads=self.threads, device=self.device, precision=self.precision)

    def stop_rule(self, manifest: Manifest) -> Policy:
        """Return the policy of requests that name no operating point.

        Raises:
            UsageError: there is no such policy or point, or it does not fit the bundle's exits.
        """
        if self.policy is None:
            return bundle_policy(manifest, self.point)
        policy = as_policy(self.policy)
        policy.start(len(manifest.segments) - 1)
        return policy
