"""Runs a part of a bundle's chain: up to an exit, or from a segment on, for two machines."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.numbers import whole
from lgvit_edge.bundle.manifest import TensorSpec
from lgvit_edge.errors import DataError, UsageError
from lgvit_edge.images.inputs import Inputs
from lgvit_edge.runtime.backends.base import SplitChain
from lgvit_edge.runtime.deciding import DecidingBundle
from lgvit_edge.runtime.result import Result

_LARGEST = float(np.finfo(np.float16).max)


class SplitBundle(DecidingBundle):
    """Holds a loaded bundle whose chain may be run in two parts, on two machines.

    Neither part counts its images (``Session.stats``) or calls hooks; ``Session.count`` does.
    """

    def run_until(
        self,
        images: Inputs,
        exit: int,
        *,
        start: float | None = None,
        deadline_ms: float | None = None,
        hidden: bool = False,
    ) -> tuple[Result, NDArray[np.float16] | None]:
        """Classify one image that ``prepare`` returned, no further than to an exit.

        ``Result.stopped`` is ``limit`` where the image went through that exit unsure: the answer is
        what the exit takes it for. With ``hidden``, the second result is then its hidden state
        there, for ``run_from``: ``[1, N, D] float16``, or as the family has it. So it is where a
        deadline stopped the image, if no pass begins later. Else it is None.

        Args:
            images: what ``prepare`` returns for one image.
            exit: the last one to run, 1..M + 1; M + 1 is no limit.
            start: ``time.perf_counter()`` at which latency and deadline begin; default now.
            deadline_ms: as for ``Session.predict``.
            hidden: see above.

        Raises:
            UsageError: there is no such exit, ``images`` is not what ``prepare`` returns, the
                policy needs several exits to decide, or the hidden state cannot be handed over.
            DataError: the hidden state is too large for float16.
            BackendError: a logit is NaN or infinite, or the session is closed.
        """
        self._check_input(images, 1)
        start = time.perf_counter() if start is None else start
        with self._lock:
            final = exit == self._exits + 1
            if final:
                self._check_open()
            else:
                self.check_split(exit, hidden=hidden)
            if self._averaging:
                self._follow(averaging=False)
            if deadline_ms is not None and not self._walk.clock.calibrated:
                self._calibrate(images)
            limit = 0 if final else exit
            result = self._walk.run_one(images, self._policy, start, deadline_ms, limit=limit)
            if not hidden or final or result.stopped == "policy" or self._later_pass(result.exit):
                return result, None
            state = cast(SplitChain, self.chain).hidden()
        if state.dtype != np.float16:
            if not (np.abs(state) <= _LARGEST).all():
                raise DataError(f"the hidden state after exit {exit} is too large for float16")
            state = state.astype(np.float16)
        return result, state

    def run_from(
        self,
        segment: int,
        images: Inputs | NDArray[np.float16],
        *,
        starts: Sequence[float] | None = None,
    ) -> list[Result]:
        """Classify images that no exit before a segment was sure of, at most the largest batch.

        Args:
            segment: 0..M, counted through all passes; it comes after the exit of the same number.
            images: their hidden states, ``[B, N, D] float16``, as the other machine's ``run_until``
                returned them for this bundle; or images as ``prepare`` returns them, with which
                the pass of that segment begins. Exits before the segment are not read.
            starts: ``time.perf_counter()`` at which each image's latency begins; default now.

        Raises:
            UsageError: there is no such segment, ``images`` is neither, there are not as many
                ``starts``, the policy needs several exits to decide, or a hidden state cannot be
                handed over there.
            BackendError: a logit is NaN or infinite, or the session is closed.
        """
        prepared = isinstance(images, Inputs)
        if prepared:
            self._check_input(images, self.max_batch)
        elif isinstance(segment, int) and 1 <= segment <= self._exits:
            self._check_hidden(images, segment)
        starts = [time.perf_counter()] * len(images) if starts is None else starts
        if len(starts) != len(images):
            raise UsageError(f"expected {len(images)} starts, one per image, found {len(starts)}")
        with self._lock:
            if not prepared or segment != 0:  # 0 is the whole chain
                self.check_split(segment, hidden=not prepared)
            self._check_open()
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
        if not 1 <= whole("exit", exit) <= self._exits:
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
                "hidden state"
            )
        if not isinstance(self.chain, SplitChain):
            backend = self.chain.describe()["backend"]
            raise UsageError(
                f"the backend {backend} does not hand hidden states over; send the image instead, "
                'or open with backend="onnxruntime" or "openvino"'
            )

    def _later_pass(self, exit: int) -> bool:
        return any(begun is not None for begun in self.manifest.begins[exit:])

    def hidden_spec(self, segment: int) -> TensorSpec:
        """Return name, dtype and shape ``[-1, ...]`` of the hidden state that a segment reads."""
        return self.manifest.segments[segment].spec.inputs[0]

    def _check_hidden(self, states: object, segment: int) -> None:
        spec = self.hidden_spec(segment)
        found = f"{getattr(states, 'dtype', type(states).__name__)} "
        found += f"{list(getattr(states, 'shape', ()))}"
        shape = list(spec.for_batch(len(states))) if isinstance(states, np.ndarray) else []
        if not (
            isinstance(states, np.ndarray)
            and states.dtype == np.float16
            and list(states.shape) == shape
            and 0 < len(states) <= self.max_batch
        ):
            raise UsageError(
                f"expected hidden states float16 {list(spec.shape)}, 1..{self.max_batch} of them, "
                f"or what session.prepare returns; found {found}"
            )
        if not np.isfinite(states).all():
            raise DataError("a hidden state has values that are not finite numbers")
