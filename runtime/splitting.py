"""Runs a part of a bundle's chain: up to an exit, or from a segment on, for two machines."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.numbers import whole
from lgvit_edge.bundle.manifest import Manifest, TensorSpec
from lgvit_edge.errors import DataError, UsageError
from lgvit_edge.images.inputs import Inputs
from lgvit_edge.policies import POLICIES, Policy
from lgvit_edge.runtime.backends.base import SplitChain
from lgvit_edge.runtime.deciding import DecidingBundle
from lgvit_edge.runtime.result import Result


class Part(NamedTuple):
    """Holds how far an image came in the first part of a chain.

    Attributes:
        result: the answer of the last exit that was run. ``stopped`` is ``limit`` where the image
            went through it unsure.
        hidden: the hidden state there, ``[1, N, D]`` or as the family has it, in the graph's dtype;
            None where it was not asked for, the image needs no second part, or a pass begins later.
        manifest: of the bundle that ran it; the session may have another by now.
        policy: that decided; likewise.
    """

    result: Result
    hidden: NDArray[Any] | None
    manifest: Manifest
    policy: Policy


class SplitBundle(DecidingBundle):
    """Holds a loaded bundle whose chain may be run in two parts, on two machines.

    Neither part counts its images (``Session.stats``) or calls hooks; ``Session.count`` does.
    """

    def run_until(
        self,
        images: Inputs,
        exit: int | None,
        *,
        start: float | None = None,
        deadline_ms: float | None = None,
        hidden: bool = False,
    ) -> Part:
        """Classify one image that ``prepare`` returned, no further than to an exit.

        Args:
            images: what ``prepare`` returns for one image.
            exit: the last one to run, 1..M; None for no limit.
            start: ``time.perf_counter()`` at which latency and deadline begin; default now.
            deadline_ms: as for ``Session.predict``.
            hidden: whether the hidden state is wanted for ``run_from``, where the image goes
                through that exit unsure, or is stopped by its deadline.

        Raises:
            UsageError: there is no such exit, ``images`` is not what ``prepare`` returns, the
                policy needs several exits to decide, or the hidden state cannot be handed over.
            BackendError: a logit is NaN or infinite, or the session is closed.
        """
        self._check_input(images, 1)
        start = time.perf_counter() if start is None else start
        with self._lock:
            self._check_open()
            if exit is not None:
                self.check_split(exit, hidden=hidden)
            if self._averaging:
                self._follow(averaging=False)
            if deadline_ms is not None and not self._walk.clock.calibrated:
                self._calibrate(images)
            result = self._walk.run_one(
                images, self._policy, start, deadline_ms, limit=0 if exit is None else exit
            )
            state = None
            if hidden and exit and result.stopped in ("limit", "deadline"):
                if not self._later_pass(result.exit):
                    state = cast(SplitChain, self.chain).hidden()
            return Part(result, state, self.manifest, self._policy)

    def run_from(
        self,
        segment: int,
        images: Inputs | NDArray[Any],
        *,
        starts: Sequence[float] | None = None,
    ) -> list[Result]:
        """Classify images that no exit before a segment was sure of, at most the largest batch.

        Args:
            segment: 0..M, counted through all passes; it comes after the exit of the same number.
            images: their hidden states, ``[B, N, D]`` in float16 or the graph's dtype, as the other
                machine's ``run_until`` returned them for this bundle; or images as ``prepare``
                returns them, with which the pass of that segment begins. Exits before the segment
                are not read.
            starts: ``time.perf_counter()`` at which each image's latency begins; default now.

        Raises:
            UsageError: there is no such segment, ``images`` is neither, there are not as many
                ``starts``, the policy needs several exits to decide, or a hidden state cannot be
                handed over there.
            DataError: a hidden state has values that are not finite numbers.
            BackendError: a logit is NaN or infinite, or the session is closed.
        """
        states = images if isinstance(images, np.ndarray) else None
        if states is not None and not states.ndim:
            raise UsageError("expected hidden states, [B, ...], found a single number")
        if not isinstance(images, np.ndarray):
            self._check_input(images, self.max_batch)
        starts = [time.perf_counter()] * len(images) if starts is None else starts
        if len(starts) != len(images):
            raise UsageError(f"expected {len(images)} starts, one per image, found {len(starts)}")
        with self._lock:
            self._check_open()
            if states is not None or segment != 0:  # 0 is the whole chain
                self.check_split(segment, hidden=states is not None)
            if states is not None:
                self._check_hidden(states, segment)
            if self._averaging:
                self._follow(averaging=False)
            return self._walk.run_from(images, self._policy, segment, starts)

    def check_split(self, exit: int, *, hidden: bool = False) -> None:
        """Refuse to split the chain after an exit, 1..M, where the second part cannot go on.

        Raises:
            UsageError: there is no such exit, the policy needs several exits to decide, or, with
                ``hidden``, no hidden state goes from there to the end.
            BackendError: the session is closed.
        """
        self._check_open()
        if not self._exits:
            raise UsageError("the model has no exits: there is nothing to split")
        if not 1 <= whole("the exit to split at", exit) <= self._exits:
            raise UsageError(f"expected an exit in 1..{self._exits} to split at, found {exit}")
        if self._rule is None:
            raise UsageError(
                f"the policy {self._policy.name} does not decide from each exit alone, and the "
                "second machine knows none before its own; set one that does, such as "
                "confidence:0.8"
            )
        if not hidden:
            return
        if self._later_pass(exit):
            raise UsageError(
                f"a pass begins after exit {exit}, which needs the image: send that, not the "
                "hidden state, or split at a later exit"
            )
        if not isinstance(self.chain, SplitChain):
            backend = self.chain.describe()["backend"]
            raise UsageError(
                f"the backend {backend} does not hand hidden states over; send the image instead, "
                'or open with backend="onnxruntime" or "openvino"'
            )

    @property
    def state(self) -> tuple[Manifest, Policy, str | None]:
        """Manifest, policy and name of the operating point, all of one moment."""
        with self._lock:
            return self.manifest, self._policy, self._point

    def hidden_spec(self, segment: int) -> TensorSpec:
        """Return name, dtype and shape ``[-1, ...]`` of the hidden state that a segment reads."""
        return self.manifest.segments[segment].spec.inputs[0]

    @property
    def first_exit_ms(self) -> float:
        """How long the first exit takes at present; 0 before ``warm_up``."""
        clock = self._walk.clock
        return clock.longest(0) if clock.calibrated else 0.0

    def _later_pass(self, exit: int) -> bool:
        return any(begun is not None for begun in self.manifest.begins[exit:])

    def _check_hidden(self, states: NDArray[Any], segment: int) -> None:
        spec = self.hidden_spec(segment)
        expected = spec.for_batch(len(states))
        if not (
            states.dtype in (np.dtype(np.float16), np.dtype(spec.dtype))
            and states.shape == expected
            and 0 < len(states) <= self.max_batch
        ):
            raise UsageError(
                f"expected hidden states float16 {list(spec.shape)}, 1..{self.max_batch} of them, "
                f"or what session.prepare returns; found {states.dtype} {list(states.shape)}"
            )
        if not np.isfinite(states).all():
            raise DataError("a hidden state has values that are not finite numbers")


def registered(policy: Policy) -> bool:
    """Return whether another machine can read a policy from its JSON."""
    return POLICIES.get(policy.name) is type(policy)
