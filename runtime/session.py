"""``Session``: a bundle opened for prediction."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge import policies
from lgvit_edge.bundle.directory import Bundle, open_bundle
from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.errors import BackendError, BundleError, UsageError
from lgvit_edge.images.preprocess import network_input
from lgvit_edge.policies import Policy
from lgvit_edge.runtime.backends.base import Chain
from lgvit_edge.runtime.backends.registry import ChainOptions, chain_opener, segment_names
from lgvit_edge.runtime.parity import check_parity
from lgvit_edge.runtime.result import Result
from lgvit_edge.runtime.runner import Walk
from lgvit_edge.runtime.stats import Recorder, Statistics
from lgvit_edge.runtime.streams import run_streams
from lgvit_edge.runtime.target_rate import TargetRate

if TYPE_CHECKING:
    from lgvit_edge.runtime.backends.tensorrt import TensorRTOptions


class Session:
    """An early-exit chain, ready to predict.

    Any thread may call, several at once: a lock lets one image or batch into the chain at a time,
    while others are resized. For images in parallel, open a session per thread.

    Attributes:
        chain: the segments, for benchmarks; whoever runs it holds the session alone.
        hooks: each is called with every ``Result``, in the thread that predicts; what it raises
            comes out of the prediction.
    """

    def __init__(
        self, bundle: Bundle, policy: Policy, open_chain: Callable[[list[str]], Chain]
    ) -> None:
        """Use ``Session.open``."""
        self._bundle, self._open_chain = bundle, open_chain
        self.chain = open_chain(segment_names(bundle))
        self._walk = Walk(self.chain, bundle.manifest)
        self._exits = len(bundle.manifest.segments) - 1
        self._baseline: Chain | None = None
        self._lock, self._closed = threading.RLock(), False
        self._recorder = Recorder(self._exits + 1)
        self._rate: TargetRate | None = None
        self._point: str | None = None
        self.hooks: list[Callable[[Result], None]] = []
        self.policy = policy

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        backend: str = "auto",
        policy: Policy | None = None,
        point: str | None = None,
        threads: int | None = None,
        thread_pool: str = "global",
        device: str | None = None,
        hint: str | None = None,
        tensorrt: TensorRTOptions | None = None,
        warm_up: bool = False,
    ) -> Session:
        """Open a bundle and load its segments.

        Args:
            path: the directory ``lgvit-edge export`` wrote.
            backend: ``tensorrt``, ``onnxruntime`` or ``openvino``; ``auto`` for ``tensorrt`` where
                the bundle has engines and this machine a GPU, else for the fastest one installed,
                measured when a bundle is first opened on a machine (seconds) and remembered.
                ``LGVIT_EDGE_BACKEND`` takes the place of ``auto``.
            policy: what stops the chain; None for the manifest's.
            point: the name of an operating point that ``lgvit-edge tune`` found, instead.
            threads: CPU threads (onnxruntime, openvino); None for one per core this process may
                use.
            thread_pool: (onnxruntime) ``global`` is fastest and makes ONNX Runtime demand
                ``use_per_session_threads = False`` of every other session in this process;
                ``private`` leaves them alone.
            device: ``cpu`` or ``cuda`` (onnxruntime), ``cpu``, ``gpu`` or ``npu`` (openvino); None
                for the best one here.
            hint: (openvino) ``f32``, ``bf16`` or ``f16``: what float32 graphs are computed in; None
                for the fastest whose logits stay within the bundle's tolerance here.
            tensorrt: how the tensorrt backend waits, records and speculates.
            warm_up: see ``warm_up``; else the first predictions are slower than those to come.

        Raises:
            BundleError: missing, damaged, unsafe or of another schema version.
            BackendError: the backend or device cannot run here, or no engine fits this GPU.
            UsageError: an argument means nothing, the policy does not fit the exits, or there is
                no such point.
        """
        if policy is not None and point is not None:
            raise UsageError("give a policy or an operating point, not both")
        from lgvit_edge.runtime.selection import choose  # importing the runtime stays quick

        options = ChainOptions(threads, thread_pool, device, hint, tensorrt)
        bundle = open_bundle(path)
        if policy is None:
            policy = _from_manifest(bundle.manifest, point)
        policy.start(len(bundle.manifest.segments) - 1)  # before anything is loaded
        name, options = choose(bundle, backend, options)
        session = cls(bundle, policy, chain_opener(bundle, name, options))
        if warm_up:
            session.warm_up()
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
        with self._lock:
            rate = policy if isinstance(policy, TargetRate) else None
            if rate is not None and rate is not self._rate:
                if not self._walk.clock.calibrated:
                    self.warm_up()
                rate.attach(self.manifest, self._walk.clock.exit_ms())
            if self._rate is not None and self._rate is not rate:
                self._rate.detach()
            self._policy, self._rate, self._point = policy, rate, None

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

    def predict(self, frame: NDArray[np.uint8], *, deadline_ms: float | None = None) -> Result:
        """Classify one frame, ``uint8`` RGB ``[H, W, 3]`` of any size.

        Args:
            frame: the image.
            deadline_ms: from this call to the answer: no segment is begun that may end later, by
                what segments take at present (``clock.MISS``). At least exit 1 answers, late where
                even that takes longer (``Result.late``). The first call with a deadline warms the
                session up, unless that was done.

        Raises:
            DataError: the frame is of another type or shape.
            UsageError: the deadline is not a positive number.
            BackendError: the session is closed.
        """
        start = time.perf_counter()
        if deadline_ms is not None and not 0 < deadline_ms < float("inf"):
            raise UsageError(f"deadline_ms must be a positive number, found {deadline_ms!r}")
        images = self.prepare([frame])
        spent = (time.perf_counter() - start) * 1e3
        return self.run(images, starts=[start], deadline_ms=deadline_ms, prepare_ms=spent)[0]

    def predict_batch(self, frames: Sequence[NDArray[np.uint8]]) -> list[Result]:
        """Classify frames together; those that exit leave the batch.

        More frames than the bundle's largest batch are split.

        Raises:
            DataError: a frame is of another type or shape.
            BackendError: the session is closed.
        """
        results: list[Result] = []
        for first in range(0, len(frames), self.max_batch):
            start = time.perf_counter()
            images = self.prepare(frames[first : first + self.max_batch])
            spent = (time.perf_counter() - start) * 1e3
            results += self.run(images, starts=[start] * len(images), prepare_ms=spent)
        return results

    def stream(
        self,
        frames: Iterable[NDArray[np.uint8]],
        *,
        batch: int | None = None,
        ahead: int | None = None,
    ) -> Iterator[Result]:
        """Classify frames as they come, in their order, for throughput.

        A thread reads and resizes up to ``ahead`` frames while the network computes; batches are
        of what has been read by then.

        Args:
            frames: ``uint8`` RGB ``[H, W, 3]`` each; a camera, a generator of files.
            batch: the largest; None for the bundle's largest.
            ahead: frames read before they are needed; None for two batches.

        Raises:
            DataError: a frame is of another type or shape; what ``frames`` raises comes through
                likewise, after the results of the frames before it.
            UsageError: ``batch`` or ``ahead`` are below 1.
            BackendError: the session is closed.
        """
        for _, result in self.streams({"frames": frames}, batch=batch, ahead=ahead):
            yield result

    def streams(
        self,
        sources: Mapping[str, Iterable[NDArray[np.uint8]]],
        *,
        batch: int | None = None,
        ahead: int | None = None,
    ) -> Iterator[tuple[str, Result]]:
        """Several cameras into one session: a thread reads each, batches mix them.

        Args:
            sources: by name; arguments and errors otherwise as for ``stream``.
            batch: the largest; None for the bundle's largest.
            ahead: frames read before they are needed, of all sources together.

        Returns:
            The source's name with each result; those of one source are in its order.
        """
        size = self.max_batch if batch is None else min(batch, self.max_batch)
        return run_streams(self, sources, batch=size, ahead=2 * size if ahead is None else ahead)

    def prepare(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[Any]:
        """Frames to network input, as the manifest says.

        Returns:
            ``[B, H, W, 3] uint8``, or ``[B, 3, H, W] float32`` where the bundle says so.

        Raises:
            DataError: a frame is of another type or shape.
        """
        manifest = self.manifest
        return network_input(frames, manifest.preprocess, manifest.image_size, manifest.input)

    def run(
        self,
        images: NDArray[Any],
        *,
        starts: Sequence[float] | None = None,
        deadline_ms: float | None = None,
        prepare_ms: float = 0.0,
    ) -> list[Result]:
        """The chain alone, on prepared input.

        Args:
            images: what ``prepare`` returns, at most the largest batch.
            starts: ``time.perf_counter()`` at which each image's latency begins; default now.
            deadline_ms: as for ``predict``; for one image.
            prepare_ms: spent on ``images`` before this call, which a frame rate has to pay too;
                nothing where another thread prepares them meanwhile.

        Raises:
            UsageError: a deadline for several images.
            BackendError: the session is closed.
        """
        began = time.perf_counter()
        if deadline_ms is not None and len(images) != 1:
            raise UsageError(f"a deadline is for one image, found {len(images)}")
        with self._lock:
            self._check_open()
            count, rate = len(images), self._rate
            starts = [began] * count if starts is None else starts
            if deadline_ms is not None and not self._walk.clock.calibrated:
                self.warm_up()
            if count == 1:
                results = [self._walk.one(images, self._policy, starts[0], deadline_ms)]
            else:
                results = self._walk.many(images, self._policy, starts)
            if rate is not None:
                network = max(result.network_ms for result in results) / count
                pace = rate.pace
                rate.observe([result.exit for result in results], network, prepare_ms / count)
                results = [dataclasses.replace(result, pace=pace) for result in results]
            for result in results:
                self._recorder.add(result)
        for hook in self.hooks:
            for result in results:
                hook(result)
        return results

    def exit_logits(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Every exit's logits, ``[B, M + 1, C] float32``; nothing stops early.

        Raises:
            DataError: a frame is of another type or shape.
            BackendError: the session is closed.
        """
        shape = (len(frames), self._exits + 1, self.manifest.num_classes)
        logits = np.empty(shape, np.float32)
        for first in range(0, len(frames), self.max_batch):
            images = self.prepare(frames[first : first + self.max_batch])
            with self._lock:
                self._check_open()
                self.chain.start(images)
                for exit in range(self._exits + 1):
                    logits[first : first + len(images), exit] = self.chain.step()
        return logits

    def timed_exits(self, images: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Run all segments on one prepared image, deciding at every exit and obeying at none.

        Returns:
            Logits ``[M + 1, C] float32``, yours, and what each segment took with the decision at
            its end, ``[M + 1]`` in ms.

        Raises:
            BackendError: the session is closed.
        """
        with self._lock:
            self._check_open()
            return self._walk.timed(images)

    def baseline_logits(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """The baseline on prepared input, ``-> [B, C] float32``, yours; loaded on first use.

        Raises:
            BackendError: the session is closed.
        """
        with self._lock:
            baseline = self._open_baseline()
            baseline.start(images)
            return baseline.step().copy()

    def check_parity(self) -> float:
        """See ``parity.check_parity``; the baseline is checked too.

        Raises:
            ParityError: beyond the tolerance the bundle was exported with; names the segment.
            BackendError: the session is closed.
        """
        with self._lock:
            return check_parity(self._bundle, self.chain, self._open_baseline())

    def warm_up(self, runs: int = 10) -> float:
        """Run the whole chain a few times, so that buffers and clocks have settled.

        Deadlines and ``TargetRate`` go by what the segments take here.

        Args:
            runs: at least 1.

        Returns:
            Median ms of the whole chain.

        Raises:
            BackendError: the session is closed.
        """
        side = self.manifest.image_size
        frame = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
        images = self.prepare([frame])
        with self._lock:
            self._check_open()
            times = np.stack([self._walk.timed(images)[1] for _ in range(runs + 2)])[2:]
            self._walk.clock.calibrate(times)
        return float(np.median(times.sum(axis=1)))

    @property
    def max_batch(self) -> int:
        """Largest batch that runs at once."""
        return self.chain.max_batch

    @property
    def stats(self) -> Statistics:
        """What the session has done so far."""
        with self._lock:
            return self._recorder.snapshot()

    def describe(self) -> dict[str, Any]:
        """Backend, version, device and threads, for records."""
        return self.chain.describe()

    def close(self) -> None:
        """Free the backend's memory, once what other threads run is done; may be called again."""
        with self._lock:
            if not self._closed:
                self._closed = True
                if self._rate is not None:
                    self._rate.detach()
                self.chain.close()
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

    def _open_baseline(self) -> Chain:
        self._check_open()
        if self._baseline is None:
            self._baseline = self._open_chain(["baseline"])
        return self._baseline

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError("the session is closed; open another one")


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
