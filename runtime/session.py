"""``Session``: a bundle opened for prediction."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge import policy as policies
from lgvit_edge.bundle import Bundle, open_bundle
from lgvit_edge.engines import graphs_of
from lgvit_edge.errors import BundleError, ParityError, UsageError
from lgvit_edge.manifest import Manifest
from lgvit_edge.policy import Policy
from lgvit_edge.preprocess import network_input
from lgvit_edge.runtime.backends import BACKENDS, best_backend, chain_opener
from lgvit_edge.runtime.chain import Chain
from lgvit_edge.runtime.result import Result
from lgvit_edge.scores import confidence as confidence_of
from lgvit_edge.scores import difference

if TYPE_CHECKING:
    from lgvit_edge.runtime.trt_chain import TensorRTOptions


class Session:
    """An early-exit chain, ready to predict.

    Not thread-safe: the chain's buffers serve one call at a time. Open one session per thread.
    """

    def __init__(
        self, bundle: Bundle, policy: Policy, open_chain: Callable[[list[str]], Chain]
    ) -> None:
        """Use ``Session.open``."""
        self._bundle, self._open_chain = bundle, open_chain
        self._chain = open_chain([name for name in graphs_of(bundle) if name != "baseline"])
        self._blocks = [segment.last_block for segment in bundle.manifest.segments]
        self._exits = len(self._blocks) - 1
        self._baseline: Chain | None = None
        self._point: str | None = None
        self.policy = policy

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        backend: str | None = None,
        policy: Policy | None = None,
        point: str | None = None,
        threads: int | None = None,
        thread_pool: str = "global",
        device: str | None = None,
        tensorrt: TensorRTOptions | None = None,
    ) -> Session:
        """Open a bundle and load its segments.

        Args:
            path: the directory ``lgvit-edge export`` wrote.
            backend: one of ``BACKENDS``; None for ``tensorrt`` where the bundle has engines and
                this machine a GPU, else ``onnxruntime``.
            policy: what stops the chain; None for the manifest's.
            point: the name of an operating point that ``lgvit-edge tune`` found, instead.
            threads: CPU threads (onnxruntime); None for one per core this process may use.
            thread_pool: (onnxruntime) ``global`` is fastest and makes ONNX Runtime demand
                ``use_per_session_threads = False`` of every other session in this process;
                ``private`` leaves them alone.
            device: ``cpu`` or ``cuda`` (onnxruntime); None for the best one here.
            tensorrt: how the tensorrt backend waits, records and speculates.

        Raises:
            BundleError: missing, damaged, unsafe or of another schema version.
            BackendError: the backend or device cannot run here, or no engine fits this GPU.
            UsageError: an argument means nothing, the policy does not fit the exits, or there is
                no such point.
        """
        if policy is not None and point is not None:
            raise UsageError("give a policy or an operating point, not both")
        if backend not in (None, *BACKENDS):
            raise UsageError(f"backend must be one of {', '.join(BACKENDS)}, found {backend!r}")
        bundle = open_bundle(path)
        if policy is None:
            policy = _from_manifest(bundle.manifest, point)
        policy.start(len(bundle.manifest.segments) - 1)  # before anything is loaded
        opener = chain_opener(
            bundle,
            backend or best_backend(bundle),
            threads=threads,
            thread_pool=thread_pool,
            device=device,
            tensorrt=tensorrt,
        )
        session = cls(bundle, policy, opener)
        session._point = point
        return session

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self._bundle.manifest

    @property
    def policy(self) -> Policy:
        """What stops the chain; may be set at any time.

        Raises:
            UsageError: on setting, when its thresholds do not fit the exits.
        """
        return self._policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        policy.start(self._exits)
        self._policy, self._point = policy, None

    @property
    def point(self) -> str | None:
        """Name of the operating point in use; may be set at any time.

        None while another policy is. The points are those the bundle had when it was opened.

        Raises:
            UsageError: on setting, when there is no such point.
        """
        return self._point

    @point.setter
    def point(self, name: str) -> None:
        self.policy = _from_manifest(self.manifest, name)
        self._point = name

    def predict(self, frame: NDArray[np.uint8]) -> Result:
        """Classify one frame, ``uint8`` RGB ``[H, W, 3]`` of any size.

        Raises:
            DataError: the frame is of another type or shape.
        """
        return self.predict_batch([frame])[0]

    def predict_batch(self, frames: Sequence[NDArray[np.uint8]]) -> list[Result]:
        """Classify frames together; those that exit leave the batch.

        More frames than the bundle's largest batch are split.

        Raises:
            DataError: a frame is of another type or shape.
        """
        results: list[Result] = []
        for first in range(0, len(frames), self._chain.max_batch):
            start = time.perf_counter()
            images = self.prepare(frames[first : first + self._chain.max_batch])
            results += self.run(images, start=start)
        return results

    def prepare(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[Any]:
        """Frames to network input, as the manifest says.

        Returns:
            ``[B, H, W, 3] uint8``, or ``[B, 3, H, W] float32`` where the bundle says so.

        Raises:
            DataError: a frame is of another type or shape.
        """
        manifest = self.manifest
        return network_input(frames, manifest.preprocess, manifest.image_size, manifest.input)

    def run(self, images: NDArray[Any], *, start: float | None = None) -> list[Result]:
        """The chain alone, on prepared input.

        Args:
            images: what ``prepare`` returns, at most the largest batch.
            start: ``time.perf_counter()`` at which latency begins; default now.
        """
        began = time.perf_counter()
        start = began if start is None else start
        if len(images) == 1:
            return [self._run_one(images, start, began)]
        chain, tracker, count = self._chain, self._policy.start(self._exits), len(images)
        results: list[Result | None] = [None] * count
        rows = np.arange(count)
        chain.start(images)
        for exit in range(1, self._exits + 2):
            logits = tracker.combine(chain.step())
            final = exit > self._exits
            stop = np.ones(len(rows), np.bool_) if final else tracker.step(exit, logits)
            for place in np.flatnonzero(stop).tolist():
                results[rows[place]] = self._result(logits[place], exit, start, began)
            going = np.flatnonzero(~stop)
            if not len(going):
                break
            rows = rows[going]
            tracker.keep(going)
            chain.keep(going)
        return [result for result in results if result is not None]

    def _run_one(self, images: NDArray[Any], start: float, began: float) -> Result:
        """``run`` for a batch of one, the usual case on a device: no rows to keep track of."""
        chain, tracker, last = self._chain, self._policy.start(self._exits), self._exits + 1
        chain.start(images)
        exit = 1
        logits = tracker.combine(chain.step())
        while exit < last and not tracker.step(exit, logits)[0]:
            exit += 1
            logits = tracker.combine(chain.step())
        return self._result(logits[0], exit, start, began)

    def exit_logits(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Every exit's logits, ``[B, M + 1, C] float32``; nothing stops early.

        Raises:
            DataError: a frame is of another type or shape.
        """
        shape = (len(frames), self._exits + 1, self.manifest.num_classes)
        logits = np.empty(shape, np.float32)
        for first in range(0, len(frames), self._chain.max_batch):
            images = self.prepare(frames[first : first + self._chain.max_batch])
            self._chain.start(images)
            for exit in range(self._exits + 1):
                logits[first : first + len(images), exit] = self._chain.step()
        return logits

    def timed_exits(
        self, images: NDArray[Any], policy: Policy
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Run all segments on one prepared image, deciding at every exit and obeying at none.

        Returns:
            Logits ``[M + 1, C] float32``, yours, and what each segment took with the decision at
            its end, ``[M + 1]`` in ms.
        """
        chain, tracker = self._chain, policy.start(self._exits)
        logits = np.empty((self._exits + 1, self.manifest.num_classes), np.float32)
        ends = np.empty(self._exits + 2)
        ends[0] = time.perf_counter()
        chain.start(images)
        for exit in range(1, self._exits + 2):
            found = tracker.combine(chain.step())
            if exit <= self._exits:
                tracker.step(exit, found)
            ends[exit] = time.perf_counter()
            logits[exit - 1] = found[0]
        return logits, np.diff(ends) * 1e3

    def baseline_logits(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """The baseline on prepared input, ``-> [B, C] float32``, yours; loaded on first use."""
        if self._baseline is None:
            self._baseline = self._open_chain(["baseline"])
        self._baseline.start(images)
        return self._baseline.step().copy()

    def check_parity(self) -> float:
        """Run the bundle's own samples through every exit and the baseline.

        One by one, as ``predict`` does, and in the largest batches.

        Returns:
            The largest difference from PyTorch's logits, absolute, or relative where one is
            larger than 1.

        Raises:
            ParityError: beyond the tolerance the bundle was exported with; names the segment.
        """
        parity = self.manifest.parity
        with np.load(self._bundle.path(parity.samples), allow_pickle=False) as samples:
            images, expected = samples["images"], samples["logits"]
        gaps = [0.0]

        def check(who: str, logits: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
            gaps.append(difference(logits, wanted))
            if gaps[-1] > parity.tolerance:
                raise ParityError(
                    f"{who} diverges from PyTorch on this device: max |difference| "
                    f"{gaps[-1]:.3g}, tolerance {parity.tolerance:g}; do not run it here"
                )

        for size in sorted({1, self._chain.max_batch}):
            for first in range(0, len(images), size):
                rows = slice(first, first + size)
                self._chain.start(images[rows])
                for index in range(self._exits + 1):
                    check(f"segment {index}", self._chain.step(), expected[rows, index])
                check("the baseline", self.baseline_logits(images[rows]), expected[rows, -1])
        return max(gaps)

    def describe(self) -> dict[str, Any]:
        """Backend, version, device and threads, for records."""
        return self._chain.describe()

    def close(self) -> None:
        """Free the backend's memory; the session is of no use afterwards."""
        self._chain.close()
        if self._baseline is not None:
            self._baseline.close()

    def __enter__(self) -> Session:
        """Return the session itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def _result(self, logits: NDArray[np.float32], exit: int, start: float, began: float) -> Result:
        """The answer from one row of logits, ``[C]``, timed now."""
        index = int(logits.argmax())
        confidence = float(confidence_of(logits[None])[0])
        now = time.perf_counter()
        labels = self.manifest.labels
        return Result(
            class_index=index,
            label=labels[index] if labels else str(index),
            confidence=confidence,
            exit=exit,
            block=self._blocks[exit - 1],
            latency_ms=(now - start) * 1e3,
            network_ms=(now - began) * 1e3,
        )


def _from_manifest(manifest: Manifest, point: str | None) -> Policy:
    """The policy of an operating point, or the bundle's own."""
    where, data = "manifest.policy", manifest.policy
    if point is not None:
        if point not in manifest.points:
            known = ", ".join(manifest.points) or "none; run: lgvit-edge tune"
            raise UsageError(f"no operating point {point!r}; this bundle has {known}")
        where, data = f"manifest.points.{point}.policy", manifest.points[point].policy
    try:
        policy = policies.from_json(data)
        policy.start(len(manifest.segments) - 1)
    except UsageError as error:
        raise BundleError(f"{where}: {error}") from None
    return policy
