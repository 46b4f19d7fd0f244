"""Loads a bundle's segments, runs all of them, and checks their logits against PyTorch's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.forks import OwnLock
from lgvit_edge._support.numbers import whole
from lgvit_edge.bundle.directory import Bundle, check_same
from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.errors import BackendError, ParityError, UsageError
from lgvit_edge.images.arrays import on_gpu
from lgvit_edge.images.inputs import Inputs
from lgvit_edge.images.preprocess import ImageLike, check_color, several
from lgvit_edge.images.spec import View
from lgvit_edge.machine.memory import return_freed
from lgvit_edge.policies.scores import difference
from lgvit_edge.runtime.backends.base import Chain, GpuChain, GpuImages
from lgvit_edge.runtime.backends.registry import segment_names
from lgvit_edge.runtime.runner import Walk, answer, every_exit, finite, step
from lgvit_edge.runtime.samples import read_samples

COARSE = 0.25  # see ``check_coarsely``


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
        self._read = (True,) * self._exits  # of each exit, whether its head always runs
        self._baseline: Chain | None = None
        self._lock, self._closed = OwnLock(), False
        self._views = bundle.manifest.views

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest: its description of itself."""
        return self._bundle.manifest

    @property
    def max_batch(self) -> int:
        """Largest batch that runs at once."""
        return self.chain.max_batch

    @property
    def heads_apart(self) -> bool:
        """Whether heads of exits that the policy does not read are left out."""
        return any(self._walk.apart)

    def prepare(
        self, images: Sequence[ImageLike], *, color: str = "rgb", own: bool = True
    ) -> Inputs:
        """Turn images into what ``run`` and the like take, as the manifest says.

        Takes images and color as ``Session.predict`` does; one array ``[B, H, W, C]`` will do.
        Images are resized for the first pass here; where there are other passes, they are kept for
        them. The result shares no memory with the images: a camera may fill its array again. With
        ``own=False`` nothing is copied for that, as in ``predict``, and the images must not change
        while it is used. Images on the GPU are resized there, for every pass at once, while no
        other thread predicts.

        Raises:
            DataError: an image is of another type or shape, or there is none.
            UsageError: there is no such color.
        """
        images = several(images)
        if not self._any_on_gpu(images):
            return Inputs.prepare(images, self._views, color, own=own)
        check_color(color)
        return Inputs.join(
            self._from_gpu(GpuImages([image], color))
            if on_gpu(image)
            else Inputs.prepare([image], self._views, color, own=own)
            for image in images
        )

    def exit_logits(
        self, images: Sequence[ImageLike], *, color: str = "rgb"
    ) -> NDArray[np.float32]:
        """Return every exit's logits, ``[B, M + 1, C] float32``; no image stops early.

        Takes images and color as ``Session.predict`` does.

        Raises:
            DataError: an image is of another type or shape.
            BackendError: the session is closed, or got another bundle meanwhile.
        """
        images, bundle = several(images), self._bundle
        shape = (len(images), len(bundle.manifest.segments), bundle.manifest.num_classes)
        logits = np.empty(shape, np.float32)
        for first in range(0, len(images), self.max_batch):
            ready = self._input(images[first : first + self.max_batch], color)
            with self._lock:
                self._check_open()
                if self._bundle is not bundle:
                    raise BackendError("the session got another bundle meanwhile; call it again")
                try:
                    every = every_exit(self.chain, ready, self.manifest.begins)
                    for exit, found in enumerate(every):
                        logits[first : first + len(ready), exit] = finite(found, exit + 1)
                finally:
                    self._give_back(ready)
        return logits

    def timed_exits(self, images: Inputs) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Run all segments on one prepared image and time each, its exit decision included.

        So is what begins a later pass, where the image is resized again. Decisions are computed but
        never stop the image. Returns a copy of the logits,
        ``[M + 1, C] float32``, and the times, ``[M + 1]`` in ms.

        Raises:
            UsageError: ``images`` is not what ``prepare`` returns for one image.
        """
        self._check_input(images, 1)
        with self._lock:
            self._check_open()
            return self._walk.timed(images)[:2]

    def timed_blocks(self, images: Inputs) -> NDArray[np.float64]:
        """Do what ``timed_exits`` does without heads, where they can be left out.

        Returns the times alone, ``[M + 1]`` in ms.

        Raises:
            UsageError: ``images`` is not what ``prepare`` returns for one image.
        """
        self._check_input(images, 1)
        with self._lock:
            self._check_open()
            return self._walk.timed_blocks(images)

    def baseline_logits(self, images: Inputs) -> NDArray[np.float32]:
        """Return a copy of the baseline's logits on prepared images, ``[B, C] float32``.

        Where there are several passes, it resizes the images for the last; see ``timed_baseline``.

        Raises:
            UsageError: ``images`` is not what ``prepare`` returns, or more than the largest batch.
        """
        self._check_input(images, self.max_batch)
        with self._lock:
            baseline = self._open_baseline()
            baseline.start(images.of(-1))
            return answer(baseline, self._exits + 1).copy()

    def timed_baseline(
        self, image: ImageLike, *, color: str = "rgb"
    ) -> tuple[NDArray[np.float32], float, float]:
        """Run the baseline on one image, as an application without exits would, and time it.

        Returns a copy of the logits, ``[C] float32``, the ms from image to logits, resizing
        included, and those of the network alone. Takes an image and raises as ``Session.predict``.
        """
        start = time.perf_counter()
        images = self._input([image], color, first=-1)
        if isinstance(images, GpuImages):  # the baseline takes them from the host
            images = self.prepare([image], color=color)
        began = time.perf_counter()
        logits = self.baseline_logits(images)[0]
        end = time.perf_counter()
        return logits, (end - start) * 1e3, (end - began) * 1e3

    @property
    def _cure(self) -> str:
        """What logits unlike PyTorch's call for."""
        return "do not run it here"

    def check_parity(self, tolerance: float | None = None) -> float:
        """Compare segments and baseline with PyTorch's logits in the bundle; return the difference.

        A baseline that was not loaded before is not kept. Precisions below float32 are judged by
        their decisions instead: their logits differ by more.

        Raises:
            ParityError: beyond ``tolerance``, by default the one that the bundle was exported with;
                names the segment.
        """
        with self._lock:
            kept = self._baseline is not None
            try:
                return check_parity(
                    self._bundle, self.chain, self._open_baseline(), tolerance, cure=self._cure
                )
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
        # As cameras give: later passes resize it again, in the time that is measured.
        frame = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
        with self._lock:
            return self._calibrate(self.prepare([frame]), runs)

    def _calibrate(self, images: Inputs, runs: int = 10) -> float:
        """Do what ``warm_up`` does, with one image and under the lock."""
        self._check_open()
        measured = [self._walk.timed(images)[1:] for _ in range(runs + 2)][2:]
        times, starts = map(np.stack, zip(*measured, strict=True))
        blocks = {}
        if unread := [i for i, read in enumerate(self._read) if self._walk.apart[i] and not read]:
            without = [self._walk.timed_blocks(images, self._read) for _ in range(runs + 2)][2:]
            blocks = {
                i: float(ms) for i, ms in enumerate(np.median(without, axis=0)) if i in unread
            }
        self._walk.clock.calibrate(times, starts, blocks)
        if (whole := self._walk.whole) is not None:
            for _ in range(2):
                whole.start(images.of(-1))
                answer(whole, self._exits + 1)
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

    def _input(self, images: Sequence[ImageLike], color: str, first: int = 0) -> Inputs | GpuImages:
        """Do what ``prepare`` does; the result may be a view of an image, so use it at once.

        ``first`` is the index of the pass that images are resized for here. Images on the GPU are
        not touched yet, if the chain takes them there.
        """
        if not self._any_on_gpu(images):
            return Inputs.prepare(images, self._views, color, first=first)
        if not all(map(on_gpu, images)):
            return self.prepare(images, color=color)
        check_color(color)
        return GpuImages(images, color)

    def _any_on_gpu(self, images: Sequence[ImageLike]) -> bool:
        """Return whether the chain takes some of the images where they are, on its GPU."""
        return self._on_gpu and isinstance(images, (list, tuple)) and any(map(on_gpu, images))

    def _from_gpu(self, images: GpuImages) -> Inputs:
        with self._lock:
            self._check_open()
            return Inputs(self._views, cast(GpuChain, self.chain).to_host(images))

    def _give_back(self, images: Inputs | GpuImages) -> None:
        """Let images on the GPU go, whatever became of them."""
        if isinstance(images, GpuImages):
            cast(GpuChain, self.chain).give_back()

    def _check_input(self, images: object, most: int) -> None:
        """Refuse what ``prepare`` did not return, or not for this bundle: backends trust it."""
        found = type(images).__name__
        if isinstance(images, Inputs):
            if images.views == self._views and 0 < len(images) <= most:
                return
            found = f"{len(images)} of {_described(images.views)}"
            found += ", for another bundle" if images.views != self._views else ""
        count = "1 image" if most == 1 else f"1..{most} images"
        raise UsageError(
            f"expected what session.prepare returns, {count} of {_described(self._views)}; found "
            f"{found}"
        )

    def _open_baseline(self) -> Chain:
        self._check_open()
        if self._baseline is None:
            check_same(self._bundle)
            self._baseline = self._open_chain(["baseline"])
        return self._baseline

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError("the session is closed; open another one")


def _described(views: Sequence[View]) -> str:
    return ", ".join(f"{view.size} px {view.dtype}" for view in views)


def check_parity(
    bundle: Bundle,
    chain: Chain,
    baseline: Chain | None,
    tolerance: float | None = None,
    *,
    cure: str = "do not run it here",
    samples: int | None = None,
) -> float:
    """Compare logits of every exit with PyTorch's, one by one and in the largest batches.

    The samples are the bundle's, all or so many; the baseline is checked too, if it is given.
    Returns the largest difference, absolute, or relative where PyTorch's logit is larger than 1.

    Raises:
        BundleError: the samples are damaged.
        ParityError: beyond ``tolerance``, by default the one that the bundle was exported with;
            names the segment, and says the ``cure``.
    """
    tolerance = bundle.manifest.parity.tolerance if tolerance is None else tolerance
    gaps = [0.0]
    for who, logits, wanted in _samples_run(bundle, chain, baseline, samples):
        gaps.append(difference(logits, wanted))
        if not gaps[-1] <= tolerance:
            raise ParityError(
                f"{who} diverges from PyTorch on this device: max |difference| "
                f"{gaps[-1]:.3g}, tolerance {tolerance:g}; {cure}"
            )
    return max(gaps)


def check_coarsely(bundle: Bundle, chain: Chain, *, samples: int | None = None) -> None:
    """Check below float32 that every exit's logits are roughly PyTorch's, as ``check_parity`` does.

    ``COARSE`` is a share of an image's largest logit. No logit may be further from PyTorch's, and
    the answer is the same where PyTorch's leads by more.

    Raises:
        BundleError: the samples are damaged.
        ParityError: they are not; names the segment.
    """
    for who, logits, wanted in _samples_run(bundle, chain, None, samples):
        scale = np.maximum(1.0, np.abs(wanted).max(axis=-1))
        gap = (np.abs(logits.astype(np.float64) - wanted).max(axis=-1) / scale).max()
        if not gap <= COARSE:  # NaN is not
            raise ParityError(
                f"{who} is far from PyTorch on this device: max |difference| {gap:.3g} of the "
                f"largest logit, expected at most {COARSE:g}"
            )
        second, first = np.sort(wanted, axis=-1)[:, -2:].T if wanted.shape[-1] > 1 else (0, 0)
        clear = first - second > COARSE * scale
        if (logits.argmax(axis=-1) != wanted.argmax(axis=-1))[clear].any():
            raise ParityError(f"{who} answers otherwise than PyTorch where that is sure")


def _samples_run(
    bundle: Bundle, chain: Chain, baseline: Chain | None, count: int | None
) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.float32]]]:
    """Yield what each graph makes of the bundle's samples, and what PyTorch made of them."""
    images, expected = read_samples(bundle)
    images, expected = images[:count], expected[:count]
    begins = bundle.manifest.begins
    for size in sorted({1, chain.max_batch}):
        for first in range(0, len(images), size):
            rows = slice(first, first + size)
            for index, logits in enumerate(every_exit(chain, images[rows], begins)):
                yield f"segment {index}", logits, expected[rows, index]
            if baseline is not None:
                baseline.start(images[rows].of(-1))
                yield "the baseline", step(baseline, len(begins)), expected[rows, -1]
