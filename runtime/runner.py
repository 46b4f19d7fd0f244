"""Runs images through a chain of segments until the policy stops them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.errors import BackendError, LGViTEdgeError, in_one_line
from lgvit_edge.images.inputs import Inputs
from lgvit_edge.policies import Averages, Confidence, Departures, Policy, Tracker
from lgvit_edge.runtime.backends.base import (
    Chain,
    ChainInParts,
    GpuChain,
    GpuImages,
    SplitChain,
)
from lgvit_edge.runtime.deadlines import SegmentClock
from lgvit_edge.runtime.result import Result

T = TypeVar("T")
_LARGEST = 1e18  # logit, by size
_LARGEST_SQUARE = _LARGEST**2
_ALONE = np.zeros(1, np.intp)  # the rows of a batch of one
_vdot = np.vdot  # unlike np.dot it does not warn of overflow


def begin(
    chain: Chain,
    images: Inputs | GpuImages,
    index: int = 0,
    segment: int = 0,
    rows: NDArray[np.intp] | None = None,
) -> None:
    """Begin the pass of this index, at its first segment, with all images or with these rows.

    A ``GpuChain`` also takes images on its GPU.
    """
    if isinstance(images, Inputs):
        chain.start(images.of(index, rows), segment)
    else:
        cast(GpuChain, chain).start_on_gpu(images if rows is None else images.at(rows), segment)


def step(chain: Chain, exit: int) -> NDArray[np.float32]:
    """Run the next segment, which ends at ``exit`` (1..M + 1); return its logits, ``[B, C]``.

    Raises:
        BackendError: the backend raised what it did not foresee.
    """
    return _run(chain.step, exit)


def step_blocks(chain: Chain, exit: int) -> None:
    """Run the next segment, which ends at ``exit``, without its head; raises as ``step``."""
    _run(cast(ChainInParts, chain).step_blocks, exit)


def _run(step: Callable[[], T], exit: int) -> T:
    try:
        return step()
    except LGViTEdgeError:
        raise
    except (OSError, RuntimeError, MemoryError, ValueError, LookupError) as error:
        raise BackendError(
            f"the segment before exit {exit} cannot run ({in_one_line(error)}): its graph is "
            "damaged, or memory ran out; export the bundle again, or with a smaller --batch"
        ) from error


def answer(chain: Chain, exit: int) -> NDArray[np.float32]:
    """Do what ``step`` does, and let through only logits that can be computed with.

    Raises:
        BackendError: a logit is NaN, infinite or beyond 1e18; names the exit.
    """
    return finite(step(chain, exit), exit)


def finite(logits: NDArray[np.float32], exit: int) -> NDArray[np.float32]:
    """Return an exit's logits if they can be computed with; raises as ``answer``."""
    # Policies add logits, and divide them by as little as 0.01: up to here that cannot overflow.
    # One row is let through by its sum of squares, which is the quickest to compute and NaN or
    # large if any logit is. A batch would wake the threads of BLAS.
    if len(logits) == 1 and float(_vdot(logits, logits)) < _LARGEST_SQUARE:
        return logits
    if (np.abs(logits) <= _LARGEST).all():
        return logits
    raise BackendError(
        f"exit {exit} gave logits that are not finite numbers, so there is no answer: the weights "
        "are damaged, or half precision overflows here; export again from a sound checkpoint, or "
        "with --precision fp32"
    )


def every_exit(
    chain: Chain, images: Inputs | GpuImages, begins: Sequence[int | None]
) -> Iterator[NDArray[np.float32]]:
    """Run all segments of all passes, and yield the logits of every exit, ``[B, C]``.

    ``begins`` is that of the manifest. Raises as ``step``.
    """
    for segment, begun in enumerate(begins):
        if begun is not None:
            begin(chain, images, begun, segment)
        yield step(chain, segment + 1)


class Walk:
    """Runs a chain's segments on images and stops each image at its exit.

    Attributes:
        clock: predicts how long segments take.
        whole: the model without exits, which runs instead where the policy never stops early and
            nothing else may; None for another policy.
    """

    def __init__(self, chain: Chain, manifest: Manifest) -> None:
        self.chain, self.clock = chain, SegmentClock()
        self.whole: Chain | None = None
        self._blocks = [segment.last_block for segment in manifest.segments]
        self._passes = manifest.pass_numbers
        self._begins = manifest.begins
        self._labels = manifest.labels
        self._bundle = manifest.digest[:12]
        self._exits = len(self._blocks) - 1
        # Of each segment, whether its head is left out where nobody reads the exit.
        self.apart = (
            tuple(chain.apart) if isinstance(chain, ChainInParts) else (False,) * len(self._blocks)
        )

    def run_one(
        self,
        images: Inputs | GpuImages,
        policy: Policy,
        start: float,
        deadline_ms: float | None = None,
        averages: Averages | None = None,
        limit: int = 0,
    ) -> Result:
        """Classify one image, the usual case on a device.

        It does what ``Departures`` does, without the bookkeeping of rows, which takes longer than
        the decision itself. Latency and the deadline begin at ``start``, a ``perf_counter()``; no
        segment is begun that may end after the deadline. Where a head is left out, its segment and
        the next had to be in time before. With ``averages`` the policy decides on those. No segment
        after the exit ``limit`` is run, unless that is 0.
        """
        if (
            self.whole is not None
            and deadline_ms is None
            and not limit
            and isinstance(images, Inputs)
        ):
            return self._run_whole(self.whole, images, policy, [start], averages)[0]
        began = mark = time.perf_counter()
        chain, clock, tracker, last = self.chain, self.clock, policy.start(self._exits), self._exits
        begins, stopped = self._begins, "final"
        # Where the model without exits would run but for the deadline, no segment without its head
        # is loaded.
        apart = self.apart if self.whole is None else (False,) * (last + 1)
        begin(chain, images)
        exit = 0  # counts from 0 inside this loop, as segments do
        while True:
            read = exit == last or tracker.reads(exit + 1)
            # With a deadline, an exit may have to answer unless the next one will be in time too.
            if (
                apart[exit]
                and not read
                and exit + 1 != limit
                and (
                    deadline_ms is None
                    or (mark - start) * 1e3 + clock.longest(exit) + clock.longest(exit + 1)
                    <= deadline_ms
                )
            ):
                step_blocks(chain, exit + 1)
                now = time.perf_counter()
                clock.add(exit, (now - mark) * 1e3, head=False)
                mark = now
            else:
                logits = answer(chain, exit + 1)
                if read:
                    logits = tracker.combine(logits)
                    if averages is not None:
                        logits = averages.mix(_ALONE, logits, tracker.scale(exit + 1))
                if exit == last:
                    break
                stop = read and tracker.step(exit + 1, logits)[0]
                now = time.perf_counter()
                clock.add(exit, (now - mark) * 1e3)
                mark = now
                if stop:
                    stopped = "policy"
                    break
                if exit + 1 == limit:
                    stopped = "limit"
                elif deadline_ms is not None and (
                    (now - start) * 1e3 + clock.longest(exit + 1) > deadline_ms
                ):
                    stopped = "deadline"
                if stopped != "final":
                    if not read:
                        logits = tracker.combine(logits)
                        if averages is not None:
                            logits = averages.mix(_ALONE, logits, tracker.scale(exit + 1))
                    break
            exit += 1
            if (begun := begins[exit]) is not None:
                begin(chain, images, begun, exit)
                now = time.perf_counter()
                clock.add_start(exit, (now - mark) * 1e3)
                mark = now
        if averages is not None:
            averages.take(_ALONE, logits, tracker.scale(exit + 1))
        index, score = int(logits[0].argmax()), float(tracker.score(exit + 1, logits)[0])
        result = self._result(tracker, index, score, exit + 1, start, began, stopped, deadline_ms)
        if exit == last:
            clock.add(exit, (time.perf_counter() - mark) * 1e3)
        return result

    def run_batch(
        self,
        images: Inputs | GpuImages,
        policy: Policy,
        starts: Sequence[float],
        averages: Averages | None = None,
    ) -> list[Result]:
        """Classify a batch; images that exit leave it. Each has its own start."""
        if self.whole is not None and isinstance(images, Inputs):
            return self._run_whole(self.whole, images, policy, starts, averages)
        began = time.perf_counter()
        batch = Departures(policy, self._exits, len(images), averages)
        begin(self.chain, images)
        return self._depart(images, batch, starts, began)

    def _depart(
        self,
        images: Inputs | GpuImages | NDArray[Any],
        batch: Departures,
        starts: Sequence[float],
        began: float,
    ) -> list[Result]:
        """Run the segments that are left, until every image of the batch has an answer."""
        chain = self.chain
        results: list[Result | None] = [None] * len(images)
        while True:
            if self.apart[batch.exit] and batch.skips_next():
                step_blocks(chain, batch.exit + 1)
                batch.skip()  # no pass begins here, as one ends in an exit that has no head
                continue
            left = batch.see(answer(chain, batch.exit + 1))
            stopped = "final" if left.exit > self._exits else "policy"
            for row, index, score in zip(left.rows, left.classes, left.scores, strict=True):
                results[row] = self._result(
                    batch.tracker, int(index), float(score), left.exit, starts[row], began, stopped
                )
            if not len(batch.rows):
                return [result for result in results if result is not None]
            if (begun := self._begins[left.exit]) is not None:
                # Hidden states are taken only where no pass begins later.
                begin(chain, cast("Inputs | GpuImages", images), begun, left.exit, batch.rows)
            else:
                chain.keep(left.going)

    def run_from(
        self,
        images: Inputs | NDArray[Any],
        policy: Policy,
        segment: int,
        starts: Sequence[float],
    ) -> list[Result]:
        """Classify a batch of which no image may leave before a segment (0..M).

        Takes the hidden states that this segment reads, if no pass begins later; or images, with
        which the pass of that segment begins.
        """
        began = time.perf_counter()
        chain, batch = self.chain, Departures(policy, self._exits, len(images))
        if isinstance(images, Inputs):
            *_, (batch.exit, index) = (
                (s, b) for s, b in enumerate(self._begins[: segment + 1]) if b is not None
            )
            begin(chain, images, index, batch.exit)
        else:
            cast(SplitChain, chain).resume(images, segment)
            batch.exit = segment
        while batch.exit < segment:
            (step_blocks if self.apart[batch.exit] else step)(chain, batch.exit + 1)
            batch.skip()
        return self._depart(images, batch, starts, began)

    def _run_whole(
        self,
        chain: Chain,
        images: Inputs,
        policy: Policy,
        starts: Sequence[float],
        averages: Averages | None,
    ) -> list[Result]:
        """Classify images with the model without exits."""
        began, exit = time.perf_counter(), self._exits + 1
        chain.start(images.of(-1))
        logits, tracker = answer(chain, exit), policy.start(self._exits)
        if averages is not None:
            rows, scale = np.arange(len(images)), tracker.scale(exit)
            logits = averages.mix(rows, logits, scale)
            averages.take(rows, logits, scale)
        answers = zip(logits.argmax(axis=-1), tracker.score(exit, logits), starts, strict=True)
        return [
            self._result(tracker, int(index), float(score), exit, start, began, "final")
            for index, score, start in answers
        ]

    def timed(
        self, images: Inputs
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
        """Run all segments on one image and time each; see ``Session.timed_exits``.

        The third result is the part of each segment's time in which a later pass was begun: the
        image resized again and handed over, ``[M + 1]`` in ms; 0 for other segments.
        """
        # Decisions are computed as in ``run_one``, to be timed, but stop nothing.
        chain, tracker = self.chain, Confidence(1.0).start(self._exits)
        logits, ends, starts = [], [time.perf_counter()], np.zeros(self._exits + 1)
        for segment, begun in enumerate(self._begins):
            if begun is not None:
                begin(chain, images, begun, segment)
                if segment:
                    starts[segment] = (time.perf_counter() - ends[-1]) * 1e3
            exit_logits = answer(chain, segment + 1)
            if segment < self._exits:
                tracker.step(segment + 1, exit_logits)
            ends.append(time.perf_counter())
            logits.append(exit_logits[0].copy())
        return np.stack(logits), np.diff(ends) * 1e3, starts

    def timed_blocks(
        self, images: Inputs, read: Sequence[bool] | None = None
    ) -> NDArray[np.float64]:
        """Run all segments on one image, without heads where they are apart, and time each.

        With ``read``, ``[M]``, only without those of exits that are not. Returns ``[M + 1]`` in ms.
        """
        apart = self.apart
        if read is not None:
            apart = tuple(a and not r for a, r in zip(apart, (*read, True), strict=True))
        ends = [time.perf_counter()]
        for segment, begun in enumerate(self._begins):
            if begun is not None:
                begin(self.chain, images, begun, segment)
            (step_blocks if apart[segment] else answer)(self.chain, segment + 1)
            ends.append(time.perf_counter())
        return np.diff(ends) * 1e3

    def _result(
        self,
        tracker: Tracker,
        index: int,
        score: float,
        exit: int,
        start: float,
        began: float,
        stopped: str,
        deadline_ms: float | None = None,
    ) -> Result:
        """Build the result of one image, whose latency ends now."""
        now = time.perf_counter()
        latency = (now - start) * 1e3
        return Result(
            class_index=index,
            label=self._labels[index] if self._labels else str(index),
            confidence=score,
            exit=exit,
            block=self._blocks[exit - 1],
            pass_number=self._passes[exit - 1],
            latency_ms=latency,
            network_ms=(now - began) * 1e3,
            stopped=stopped,
            late=deadline_ms is not None and latency > deadline_ms,
            measure=tracker.measure,
            bundle=self._bundle,
        )
