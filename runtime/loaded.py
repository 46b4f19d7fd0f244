"""Loads a bundle's segments, runs all of them, and checks their logits against PyTorch's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.forks import OwnLock
from lgvit_edge._support.numbers import whole
from lgvit_edge.bundle.directory import Bundle
from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.errors import BackendError, ParityError, UsageError
from lgvit_edge.images.arrays import is_array, on_gpu
from lgvit_edge.images.preprocess import ImageLike, check_color, network_input, several
from lgvit_edge.machine.memory import return_freed
from lgvit_edge.policies.scores import difference
from lgvit_edge.runtime.backends.base import Chain, GpuChain, GpuImages
from lgvit_edge.runtime.backends.registry import segment_names
from lgvit_edge.runtime.runner import Walk, answer, begin, step
from lgvit_edge.runtime.samples import read_samples


class LoadedBundle:
    """Holds a bundle's loaded segments, and on demand its baseline, under one lock.

    What runs them raises ``BackendError`` where a logit is not finite, once the session is closed,
    and in a process that was forked since; a session cannot be pickled.

    Attributes:
        chain: the segments, for benchmarks; no other thread may use the session meanwhile.
    """

    def __init__(self, bundle: Bundle, open_chain: Callable[[list[str]], Chain]) -> None:
        self._bundle, self._open_chain = bundle, open_chain
        self.chain = open_chain(segment_names(bundle))
        self._on_gpu = isinstance(self.chain, GpuChain)
        self._walk = Walk(self.chain, bundle.manifest)
        self._exits = len(bundle.manifest.segments) - 1
        self._baseline: Chain | None = None
        self._lock, self._closed = OwnLock(), False
        wanted = bundle.manifest.segments[0].spec.inputs[0]
        self._shape, self._dtype = wanted.shape[1:], np.dtype(wanted.dtype)

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest: its description of itself."""
        return self._bundle.manifest

    @property
    def max_batch(self) -> int:
        """Largest batch that runs at once."""
        return self.chain.max_batch

    def prepare(self, images: Sequence[ImageLike], *, color: str = "rgb") -> NDArray[Any]:
        """Resize and normalise images into network input, as the manifest says.

        Takes images and color as ``Session.predict`` does; one array ``[B, H, W, C]`` will do.
        Returns ``[B, H, W, 3] uint8``, or ``[B, 3, H, W] float32`` where the bundle says so, on the
        host, which shares no memory with the images: a camera may fill its array again. Images on
        the GPU are resized there, while no other thread predicts.

        Raises:
            DataError: an image is of another type or shape, or there is none.
            UsageError: there is no such color.
        """
        images = several(images)
        ready = self._input(images, color)
        if isinstance(ready, GpuImages):
            return self._to_host(ready)
        if len(images) > 1 or not is_array(images[0]):  # more were stacked
            return ready
        whose = images[0] if isinstance(images[0], np.ndarray) else ready
        return ready.copy() if np.may_share_memory(ready, whose) else ready

    def exit_logits(
        self, images: Sequence[ImageLike], *, color: str = "rgb"
    ) -> NDArray[np.float32]:
        """Return every exit's logits, ``[B, M + 1, C] float32``; no image stops early.

        Takes images and color as ``Session.predict`` does.

        Raises:
            DataError: an image is of another type or shape.
        """
        images = several(images)
        shape = (len(images), self._exits + 1, self.manifest.num_classes)
        logits = np.empty(shape, np.float32)
        for first in range(0, len(images), self.max_batch):
            ready = self._input(images[first : first + self.max_batch], color)
            with self._lock:
                self._check_open()
                try:
                    begin(self.chain, ready)
                    for exit in range(self._exits + 1):
                        logits[first : first + len(ready), exit] = answer(self.chain, exit + 1)
                finally:
                    self._give_back(ready)
        return logits

    def timed_exits(self, images: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Run all segments on one prepared image and time each, its exit decision included.

        Decisions are computed but never stop the image. Returns a copy of the logits,
        ``[M + 1, C] float32``, and the times, ``[M + 1]`` in ms.

        Raises:
            UsageError: ``images`` is not what ``prepare`` returns for one image.
        """
        self._check_input(images, 1)
        with self._lock:
            self._check_open()
            return self._walk.timed(images)

    def baseline_logits(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Return a copy of the baseline's logits on prepared input, ``[B, C] float32``.

        Raises:
            UsageError: ``images`` is not what ``prepare`` returns, or more than the largest batch.
        """
        self._check_input(images, self.max_batch)
        with self._lock:
            baseline = self._open_baseline()
            baseline.start(images)
            return answer(baseline, self._exits + 1).copy()

    def check_parity(self, tolerance: float | None = None) -> float:
        """Compare segments and baseline with PyTorch's logits in the bundle; return the difference.

        A baseline that was not loaded before is not kept.

        Raises:
            ParityError: beyond ``tolerance``, by default the one that the bundle was exported with;
                names the segment.
        """
        with self._lock:
            kept = self._baseline is not None
            try:
                return check_parity(self._bundle, self.chain, self._open_baseline(), tolerance)
            finally:
                if not kept and self._baseline is not None:
                    self._baseline.close()
                    self._baseline = None

    def warm_up(self, runs: int = 10) -> float:
        """Run the whole chain a few times, at least once; return its median time in ms.

        Later predictions are at full speed. Deadlines and ``TargetRate`` go by the times measured.

        Raises:
            UsageError: ``runs`` is not a whole number of at least 1.
        """
        runs = whole("runs", runs)
        side = self.manifest.image_size
        frame = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
        images = self.prepare([frame])
        with self._lock:
            self._check_open()
            times = np.stack([self._walk.timed(images)[1] for _ in range(runs + 2)])[2:]
            self._walk.clock.calibrate(times)
        return float(np.median(times.sum(axis=1)))

    def describe(self) -> dict[str, Any]:
        """Return backend, version, device and threads, for records."""
        with self._lock:
            return self.chain.describe()

    def close(self) -> None:
        """Free all memory, after waiting for other threads; may be called again.

        In a forked process it does nothing, because the memory is the other process's.
        """
        if self._lock.left:
            return
        with self._lock:
            if not self._closed:
                self._closed = True
                if self._baseline is not None:
                    self._baseline.close()  # first, as each gives back the GPU that it found
                self.chain.close()
                return_freed()

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            "a session cannot be copied, pickled or sent to another process; open one there, from "
            "the bundle's folder"
        )

    def _input(self, images: Sequence[ImageLike], color: str) -> NDArray[Any] | GpuImages:
        """Do what ``prepare`` does; the result may be a view of an image, so use it at once.

        Images on the GPU are not touched yet, if the chain takes them there.
        """
        if self._on_gpu and isinstance(images, (list, tuple)) and any(map(on_gpu, images)):
            check_color(color)
            if all(map(on_gpu, images)):
                return GpuImages(images, color)
            return np.concatenate([self.prepare([image], color=color) for image in images])
        spec = self.manifest
        return network_input(images, spec.preprocess, spec.image_size, spec.input, color)

    def _to_host(self, images: GpuImages) -> NDArray[Any]:
        with self._lock:
            self._check_open()
            return cast(GpuChain, self.chain).to_host(images)

    def _give_back(self, images: NDArray[Any] | GpuImages) -> None:
        """Let images on the GPU go, whatever became of them."""
        if isinstance(images, GpuImages):
            cast(GpuChain, self.chain).give_back()

    def _check_input(self, images: object, most: int) -> None:
        """Refuse what ``prepare`` did not return: backends trust its shape."""
        shape, dtype = self._shape, self._dtype
        found = type(images).__name__
        if isinstance(images, np.ndarray):
            if images.dtype == dtype and images.shape[1:] == shape and 0 < len(images) <= most:
                return
            found = f"{images.dtype} {list(images.shape)}"
        sizes = ", ".join(map(str, ["1" if most == 1 else f"1..{most}", *shape]))
        raise UsageError(f"expected what session.prepare returns, {dtype} [{sizes}]; found {found}")

    def _open_baseline(self) -> Chain:
        self._check_open()
        if self._baseline is None:
            self._baseline = self._open_chain(["baseline"])
        return self._baseline

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError("the session is closed; open another one")


def check_parity(
    bundle: Bundle, chain: Chain, baseline: Chain | None, tolerance: float | None = None
) -> float:
    """Compare logits of every exit with PyTorch's, one by one and in the largest batches.

    The samples are the bundle's; the baseline is checked too, if it is given. Returns the largest
    difference, absolute, or relative where PyTorch's logit is larger than 1.

    Raises:
        BundleError: the samples are damaged.
        ParityError: beyond ``tolerance``, by default the one that the bundle was exported with;
            names the segment.
    """
    tolerance = bundle.manifest.parity.tolerance if tolerance is None else tolerance
    images, expected = read_samples(bundle)
    gaps = [0.0]

    def check(who: str, running: Chain, exit: int, wanted: NDArray[np.float32]) -> None:
        gaps.append(difference(step(running, exit), wanted))
        if not gaps[-1] <= tolerance:
            raise ParityError(
                f"{who} diverges from PyTorch on this device: max |difference| "
                f"{gaps[-1]:.3g}, tolerance {tolerance:g}; do not run it here"
            )

    for size in sorted({1, chain.max_batch}):
        for first in range(0, len(images), size):
            rows = slice(first, first + size)
            chain.start(images[rows])
            for index in range(len(bundle.manifest.segments)):
                check(f"segment {index}", chain, index + 1, expected[rows, index])
            if baseline is not None:
                baseline.start(images[rows])
                check("the baseline", baseline, len(bundle.manifest.segments), expected[rows, -1])
    return max(gaps)
