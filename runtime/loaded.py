"""Loads a bundle's segments and runs all of them, as tuning and benchmarks need."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.bundle.directory import Bundle
from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.errors import BackendError
from lgvit_edge.images.preprocess import ImageLike, network_input, refuse_single
from lgvit_edge.runtime.backends.base import Chain
from lgvit_edge.runtime.backends.registry import segment_names
from lgvit_edge.runtime.parity import check_parity
from lgvit_edge.runtime.runner import Walk


class LoadedBundle:
    """Holds a bundle's loaded segments, and on demand its baseline, under one lock.

    Attributes:
        chain: the segments, for benchmarks; no other thread may use the session meanwhile.
    """

    def __init__(self, bundle: Bundle, open_chain: Callable[[list[str]], Chain]) -> None:
        self._bundle, self._open_chain = bundle, open_chain
        self.chain = open_chain(segment_names(bundle))
        self._walk = Walk(self.chain, bundle.manifest)
        self._exits = len(bundle.manifest.segments) - 1
        self._baseline: Chain | None = None
        self._lock, self._closed = threading.RLock(), False

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

        Args:
            images: as for ``Session.predict``; one array ``[B, H, W, C]`` will do.
            color: of arrays, ``rgb`` or ``bgr``.

        Returns:
            ``[B, H, W, 3] uint8``, or ``[B, 3, H, W] float32`` where the bundle says so. It may be
            a view of an image that has the network's size already.

        Raises:
            DataError: an image is of another type or shape.
            UsageError: there is no such color.
        """
        manifest = self.manifest
        size = manifest.image_size
        return network_input(images, manifest.preprocess, size, manifest.input, color)

    def exit_logits(
        self, images: Sequence[ImageLike], *, color: str = "rgb"
    ) -> NDArray[np.float32]:
        """Return every exit's logits, ``[B, M + 1, C] float32``; no image stops early.

        Args:
            images: as for ``Session.predict``.
            color: of arrays, ``rgb`` or ``bgr``.

        Raises:
            DataError: an image is of another type or shape.
            BackendError: the session is closed.
        """
        refuse_single(images)
        shape = (len(images), self._exits + 1, self.manifest.num_classes)
        logits = np.empty(shape, np.float32)
        for first in range(0, len(images), self.max_batch):
            ready = self.prepare(images[first : first + self.max_batch], color=color)
            with self._lock:
                self._check_open()
                self.chain.start(ready)
                for exit in range(self._exits + 1):
                    logits[first : first + len(ready), exit] = self.chain.step()
        return logits

    def timed_exits(self, images: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Run all segments on one prepared image and time each, its exit decision included.

        Decisions are computed but never stop the image.

        Returns:
            Logits ``[M + 1, C] float32``, a copy, and the times, ``[M + 1]`` in ms.

        Raises:
            BackendError: the session is closed.
        """
        with self._lock:
            self._check_open()
            return self._walk.timed(images)

    def baseline_logits(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Return the baseline's logits on prepared input, ``[B, C] float32``, a copy.

        The baseline is loaded on first use.

        Raises:
            BackendError: the session is closed.
        """
        with self._lock:
            baseline = self._open_baseline()
            baseline.start(images)
            return baseline.step().copy()

    def check_parity(self) -> float:
        """Compare segments and baseline with PyTorch's logits in the bundle; return the difference.

        See ``parity.check_parity``.

        Raises:
            ParityError: beyond the tolerance the bundle was exported with; names the segment.
            BackendError: the session is closed.
        """
        with self._lock:
            return check_parity(self._bundle, self.chain, self._open_baseline())

    def warm_up(self, runs: int = 10) -> float:
        """Run the whole chain a few times, so that later predictions are at full speed.

        Deadlines and ``TargetRate`` go by the times measured here.

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

    def describe(self) -> dict[str, Any]:
        """Return backend, version, device and threads, for records."""
        return self.chain.describe()

    def close(self) -> None:
        """Free the backend's memory, after waiting for other threads; may be called again."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self.chain.close()
                if self._baseline is not None:
                    self._baseline.close()

    def _open_baseline(self) -> Chain:
        self._check_open()
        if self._baseline is None:
            self._baseline = self._open_chain(["baseline"])
        return self._baseline

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError("the session is closed; open another one")
