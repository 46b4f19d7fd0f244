"""Decides where a loaded bundle's images stop: its policy, set at any time or taken from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lgvit_edge._support.text import tell
from lgvit_edge.bundle.directory import Bundle, check_same
from lgvit_edge.errors import UsageError
from lgvit_edge.policies import Policy, Rule, as_policy
from lgvit_edge.runtime.backends.base import Chain, ChainInParts
from lgvit_edge.runtime.loaded import LoadedBundle
from lgvit_edge.runtime.precision import Chosen, bundle_policy, to_compare
from lgvit_edge.runtime.target_rate import TargetRate


class DecidingBundle(LoadedBundle):
    """Holds a loaded bundle, and the policy that decides where its images stop.

    Attributes:
        notes: whether a policy is noted on standard error, once, for which nothing shows that the
            lower precision that ``auto`` took decides as float32 does.
    """

    def __init__(
        self, bundle: Bundle, policy: Policy | str, open_chain: Callable[[list[str]], Chain]
    ) -> None:
        super().__init__(bundle, open_chain)
        self._rate: TargetRate | None = None
        self._point: str | None = None
        self._from_bundle = False  # whether the policy is the bundle's own
        self._rule: Rule | None = None  # the policy's, for a chain that decides by it
        self._averaging = False  # whether the chain was last told to decide by none
        self._not_averaged: list[str] = []  # names of policies in use that take no memory
        self._chosen = Chosen("")
        self._noted: set[str] = set()  # policies that a note was made of
        self.notes = True
        try:
            self.policy = policy
        except BaseException:
            self.close()
            raise

    @property
    def policy(self) -> Policy:
        """The policy that decides where images stop; may be set at any time, as text too.

        Heads of exits where no image can stop under it, such as those with a threshold of 1, are
        not run on onnxruntime and openvino. Under one that never stops early, such as ``Never``,
        the model without exits runs in place of the chain, except with a deadline or an image on
        the GPU. It is loaded beside the chain.

        Raises:
            UsageError: on setting, when it is none or its thresholds do not fit the exits.
            BackendError, BundleError: on setting, when what it runs cannot be loaded.
        """
        return self._policy

    @policy.setter
    def policy(self, policy: Policy | str) -> None:
        policy = as_policy(policy)
        with self._lock:
            tracker = policy.start(self._exits)
            never = self._exits > 0 and not policy.stops_early(self._exits)
            rate = policy if isinstance(policy, TargetRate) else None
            # First, because these may fail.
            whole = self._open_baseline() if never else None
            policies = [policy] if rate is None else rate.policies(self.manifest)
            read = (True,) * self._exits if never else self._load_blocks(policies)
            known, self._read = self._read, read
            if rate is not None and rate is not self._rate:
                clock = self._walk.clock
                if not (clock.calibrated and known == read):
                    self.warm_up()
                rate.attach(self.manifest, clock.exit_ms(), clock.saved_ms())
            if self._rate is not None and self._rate is not rate:
                self._rate.detach()
            self._rule = None if rate is not None else tracker.rule()  # a rate's points vary
            self._follow(averaging=False)
            self._not_averaged = [policy.name for policy in policies if not policy.averages]
            self._walk.whole = whole
            self._policy, self._rate, self._point = policy, rate, None
            self._from_bundle = False
        if self._chosen.lowered and self.notes and str(policy.to_json()) not in self._noted:
            self._noted.add(str(policy.to_json()))
            self._note(policy)

    def _follow(self, *, averaging: bool) -> None:
        """Tell a chain that decides by itself the policy's rule, or none: a memory decides too."""
        self._averaging = averaging
        if (follow := getattr(self.chain, "follow", None)) is not None:
            follow(None if averaging else self._rule)

    def _load_blocks(self, policies: Sequence[Policy]) -> tuple[bool, ...]:
        """Make the chain ready to leave out heads that one of these policies does not read.

        Returns, for each exit, whether all of them read it.
        """
        every = [policy.exits_read(self._exits) for policy in policies]
        read = tuple(all(each) for each in zip(*every, strict=True))
        if isinstance(self.chain, ChainInParts):
            if unread := [i for i, r in enumerate(read) if self._walk.apart[i] and not r]:
                check_same(self._bundle)
                self.chain.load_blocks(unread)
        return read

    def _note(self, policy: Policy) -> None:
        """Say that the precision was chosen at another policy, unless evidence is for this too."""
        evidence = self._chosen.evidence(self.manifest, policy)
        if evidence is not None and not evidence.faults:
            return
        unknown = evidence is None or evidence.too_few
        known = "nothing shows that it does at this one"
        if evidence is not None:
            known = f"at this one: {'; '.join(evidence.faults)}"
        command = to_compare(self._bundle, policy, self._chosen.asked)
        compare = f"; to compare, run: {command}" if command and unknown else ""
        tell(
            f"note: this session computes in {self._chosen.options.precision}, because that "
            f"decides as float32 does at another policy; {known}{compare}; to compute in float32, "
            'open it with precision="fp32"'
        )

    @property
    def point(self) -> str | None:
        """Name of the operating point in use, None for another policy; may be set at any time.

        The points are those the bundle had when it was opened.

        Raises:
            UsageError: on setting, when there is no such point, or it is certified and ``auto``
                took a precision below float32 for another.
        """
        return self._point

    @point.setter
    def point(self, name: str) -> None:
        with self._lock:
            policy = bundle_policy(self.manifest, name)
            if self._chosen.lowered and self.manifest.points[name].guarantee is not None:
                raise UsageError(
                    f"the point {name} is certified, and a certificate holds for the precision "
                    f"that it was made in: expected float32, this session computes in "
                    f'{self._chosen.options.precision}; open it with precision="fp32"'
                )
            self.policy = policy
            self._point = name

    def describe(self) -> dict[str, Any]:
        """Return backend, version, device, threads and precision, for records.

        Below float32 ``evidence`` is what is known of its decisions at the present policy, or None.
        A ``hint`` says how a lower precision would become available.
        """
        about = super().describe()
        if self._chosen.lower:
            evidence = self._chosen.evidence(self.manifest, self._policy)
            about |= {
                "precision": self._chosen.options.precision,
                "evidence": None if evidence is None else evidence.to_record(),
            }
        return about | ({"hint": self._chosen.hint} if self._chosen.hint else {})

    @property
    def _cure(self) -> str:
        if not self._chosen.lower:
            return super()._cure
        precision = self._chosen.options.precision
        return f'it was computed in {precision}: to compare in float32, open with precision="fp32"'

    def close(self) -> None:
        """See ``LoadedBundle.close``."""
        if self._lock.left:
            return
        with self._lock:
            if self._rate is not None:
                self._rate.detach()
            super().close()
