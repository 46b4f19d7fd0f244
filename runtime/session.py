"""``Session``: opens a bundle and classifies images with it."""

from __future__ import annotations

import dataclasses
import math
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path

from lgvit_edge._support.forks import OwnLock
from lgvit_edge._support.numbers import positive, whole
from lgvit_edge.bundle.directory import Bundle, open_bundle
from lgvit_edge.bundle.keys import KeySource, PublicKey, read_trusted
from lgvit_edge.errors import UsageError
from lgvit_edge.images.inputs import Inputs
from lgvit_edge.images.preprocess import ImageLike, check_color, check_several, several
from lgvit_edge.policies import POLICIES, Averages, Memory, Policy, as_policy
from lgvit_edge.runtime.backends.base import Chain, ChainOptions, GpuImages, TensorRTOptions
from lgvit_edge.runtime.backends.registry import chain_opener
from lgvit_edge.runtime.precision import bundle_policy
from lgvit_edge.runtime.reading import Intake, Item, Readers, StreamError
from lgvit_edge.runtime.reloading import switch
from lgvit_edge.runtime.result import Result
from lgvit_edge.runtime.splitting import SplitBundle
from lgvit_edge.runtime.stats import Recorder, Statistics
from lgvit_edge.runtime.streams import run_streams


class Session(SplitBundle):
    """Classifies images with an opened bundle; each image stops at its first confident exit.

    Several threads may call at once: a lock lets one image or batch into the chain at a time, while
    others are resized. To run images in parallel, open a session per thread.

    Attributes:
        hooks: each is called with every ``Result``, in the thread that predicts; an exception it
            raises reaches the caller.
        notes: see ``DecidingBundle``.
    """

    def __init__(
        self, bundle: Bundle, policy: Policy | str, open_chain: Callable[[list[str]], Chain]
    ) -> None:
        """Wrap an opened bundle; use ``Session.open`` instead."""
        super().__init__(bundle, policy, open_chain)
        self._recorder = Recorder(bundle.manifest.pass_numbers)
        self._keys: tuple[PublicKey, ...] | None = None  # one of which has signed the bundle
        self._memories: weakref.WeakSet[Memory] = weakref.WeakSet()  # of frames that it answered
        self._reloads = OwnLock()  # held while another bundle is opened
        self.hooks: list[Callable[[Result], None]] = []

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        backend: str = "auto",
        policy: Policy | str | None = None,
        point: str | None = None,
        threads: int | None = None,
        thread_pool: str | None = None,
        device: str | None = None,
        precision: str | None = None,
        tensorrt: TensorRTOptions | None = None,
        warm_up: bool = False,
        trusted_keys: Sequence[KeySource] | None = None,
    ) -> Session:
        """Open a bundle and load its segments.

        Example:
            with Session.open("out/", warm_up=True) as session:
                result = session.predict("cat.jpg")

        Args:
            path: the directory ``lgvit-edge export`` wrote.
            backend: ``tensorrt``, ``onnxruntime``, ``openvino``, or what ``register_backend`` was
                given; ``auto`` for ``tensorrt`` where the bundle has engines and this machine a
                GPU, else for the fastest one installed, measured when a bundle is first opened on
                a machine (seconds) and remembered. ``LGVIT_EDGE_BACKEND`` takes the place of
                ``auto``. An option that a backend does not take is refused, and with ``auto``
                leaves that backend out.
            policy: decides where images stop, or its text as on the command line, such as
                ``confidence:0.8``; None for the one in the bundle's manifest, which is that one
                unless ``lgvit-edge export --policy`` said otherwise.
            point: instead, the name of an operating point that ``lgvit-edge tune`` stored.
            threads: CPU threads (onnxruntime, openvino); None for one per core of this process.
            thread_pool: (onnxruntime) ``global``, the default, is fastest and makes ONNX Runtime
                demand ``use_per_session_threads = False`` of every other session in this process;
                ``private`` leaves them alone, and is the default before onnxruntime 1.23.
            device: ``cpu`` or ``cuda`` (onnxruntime), ``cuda`` (tensorrt), ``cpu``, ``gpu`` or
                ``npu`` (openvino); None for the best one here. ``cuda`` is the first NVIDIA GPU,
                and ``cuda:1`` the second.
            precision: (openvino) ``fp32``, ``bf16`` or ``fp16``: what float32 graphs are computed
                in; None for the fastest with evidence in the bundle that it decides as float32 does
                on this hardware at this policy (``lgvit-edge doctor --data``), else float32; for a
                certified point float32.
            tensorrt: options of the tensorrt backend.
            warm_up: see ``warm_up``; without it the first predictions are slower.
            trusted_keys: public keys, one of which must have signed the bundle as it is
                (``lgvit-edge bundle sign``): files, each with one or several in PEM, or as
                ``bytes`` PEM or the 32 bytes of one. Nobody but this user and root may be able to
                change the bundle then. None for a bundle of anybody.

        Raises:
            BundleError: missing, damaged, unsafe, of another schema version, or not signed by a
                trusted key.
            BackendError: the backend or device cannot run here, or no engine fits this GPU.
            MissingDependency: the backend is not installed.
            UsageError: an argument is invalid or not for this backend, the policy does not fit the
                exits, or there is no such point.
        """
        if policy is not None and point is not None:
            raise UsageError("give a policy or an operating point, not both")
        from lgvit_edge.runtime.selection import choose  # importing the runtime stays quick

        options = ChainOptions(threads, thread_pool, device, precision, tensorrt)
        keys = None if trusted_keys is None else read_trusted(trusted_keys)
        bundle = open_bundle(path, trusted_keys=keys)
        from_bundle = policy is None and point is None
        if policy is None:
            policy = bundle_policy(bundle.manifest, point)
        policy = as_policy(policy)
        policy.start(len(bundle.manifest.segments) - 1)  # before anything is loaded
        certified = point is not None and bundle.manifest.points[point].guarantee is not None
        chosen = choose(bundle, backend, options, policy, certified=str(point) if certified else "")
        session = cls(bundle, policy, chain_opener(bundle, chosen.backend, chosen.options))
        session._chosen = chosen
        try:
            if warm_up:
                session.warm_up()
        except BaseException:
            session.close()
            raise
        session._point, session._from_bundle, session._keys = point, from_bundle, keys
        return session

    def reload(
        self,
        path: str | Path,
        *,
        policy: Policy | str | None = None,
        point: str | None = None,
        other_classes: bool = False,
    ) -> Statistics:
        """Take another bundle between two frames, while other threads predict; or keep this one.

        The new bundle is opened beside this one, on the same backend and with the same options and
        trusted keys, its logits are compared with PyTorch's on its samples, and it is warmed up.
        For that long there is memory for two. Then all that follows is answered by the new one: no
        frame fails, and each is answered by one bundle (``Result.bundle``). Whatever goes wrong
        before, this one goes on.

        The bundle's own policy is replaced by the new one's, an operating point by that of the same
        name; another policy stays. Statistics begin anew, memories of frames are forgotten, hooks
        stay. Streams go on.

        Args:
            path: the new bundle's folder; also the present one, if another bundle lies there now.
            policy: from then on, as for ``open``; None as said above.
            point: likewise.
            other_classes: whether the new bundle may have other classes.

        Returns:
            What the bundle before has done.

        Raises:
            BundleError, BackendError, MissingDependency: it cannot be opened, as ``open`` says.
            ParityError: its logits are not PyTorch's.
            UsageError: it takes images of another size or prepared otherwise, has other classes or
                a smaller largest batch, or the policy does not fit it.
        """
        asked = self._chosen.asked[1]

        def open_new(policy: Policy | None, point: str | None) -> Session:
            return Session.open(
                path,
                backend=self._chosen.backend,
                policy=policy,
                point=point,
                **vars(asked),
                trusted_keys=None if self._keys is None else [key.raw for key in self._keys],
            )

        if policy is not None and point is not None:
            raise UsageError("give a policy or an operating point, not both")
        wanted = None if policy is None else as_policy(policy)
        with self._reloads:
            before = switch(
                self, open_new, self._begin_anew, wanted, point, other_classes=other_classes
            )
            before.close()
            return before.stats

    def _begin_anew(self, before: Session) -> None:
        """Forget what another bundle answered; the streams under way are counted on."""
        for memory in self._memories:
            memory.forget()
        for name in before.stats.streams:
            self._recorder.begin(name)

    def predict(
        self,
        image: ImageLike,
        *,
        color: str = "rgb",
        deadline_ms: float | None = None,
        memory: Memory | None = None,
    ) -> Result:
        """Classify one image of any size.

        Example:
            result = session.predict(frame, color="bgr")  # a frame of OpenCV
            print(result.label, result.confidence, result.exit)

        Args:
            image: ``uint8`` array ``[H, W, 3]``; ``[H, W]`` or ``[H, W, 1]``, grey; ``[H, W, 4]``,
                whose transparency is dropped, as of files; the path of a file; or a Pillow image.
                Arrays are NumPy's or, with ``__dlpack__``, of PyTorch or another library. The
                tensorrt backend also takes those in the memory of its GPU, with ``__dlpack__`` or
                ``__cuda_array_interface__``: they are resized there, and have been read when this
                returns.
            color: of arrays, whether channels come as ``rgb`` or, as in OpenCV, ``bgr``.
            deadline_ms: from this call to the answer: no segment is begun that is likely to end
                later, at the segments' present speed (``deadlines.MISS``). Exit 1 always answers,
                late if even that takes longer (``Result.late``). The first call with a deadline
                warms the session up, unless that was done.
            memory: of the frames before, for one camera: the answer is then averaged over time.

        Raises:
            DataError: the image is of another type or shape, is not where the backend can read it,
                or cannot be read.
            UsageError: the deadline is not a positive number, there is no such color, or the memory
                is none, is of other classes, or not for this policy.
            BackendError: a logit is NaN or infinite, or the session is closed.
        """
        start = time.perf_counter()
        if deadline_ms is not None:
            positive("deadline_ms", deadline_ms)
        memories = None if memory is None else _checked_memories([memory], 1)
        images = self._input([image], color, first=self._first_pass if deadline_ms is None else 0)
        prepare_ms = (time.perf_counter() - start) * 1e3
        return self._run(images, [start], deadline_ms, prepare_ms, memories=memories)[0]

    def predict_batch(self, images: Sequence[ImageLike], *, color: str = "rgb") -> list[Result]:
        """Classify images together; those that exit leave the batch.

        More images than the bundle's largest batch are run in several batches. Arguments and errors
        are those of ``predict``; one array ``[B, H, W, C]`` will do.
        """
        images = several(images)
        results: list[Result] = []
        for first in range(0, len(images), self.max_batch):
            start = time.perf_counter()
            chunk = images[first : first + self.max_batch]
            ready = self._input(chunk, color, first=self._first_pass)
            prepare_ms = (time.perf_counter() - start) * 1e3
            results += self._run(ready, [start] * len(ready), prepare_ms=prepare_ms)
        return results

    def stream(
        self,
        images: Iterable[ImageLike],
        *,
        color: str = "rgb",
        batch: int | None = None,
        ahead: int | None = None,
        drop_oldest: bool = False,
        timeout: float | None = None,
        deadline_ms: float | None = None,
    ) -> Iterator[Result]:
        """Classify images as they come, in their order.

        A thread reads and resizes the next images while the network computes; a batch holds what
        has been read by then. A source may reuse one array for all its images. The end of the
        iterator, or its ``close``, stops to read: it waits up to a second for what the source is
        about to return.

        Args:
            images: one after the other, each as ``predict`` takes it.
            color: as for ``predict``.
            batch: images that run together at most; None for the bundle's largest batch.
            ahead: images that are read early at most; None for two batches, which several sources
                share, or with ``drop_oldest`` for 1.
            drop_oldest: for live cameras, as GStreamer's ``appsink drop=true``: when ``ahead``
                images wait, the oldest is dropped (``Statistics.dropped``) and the source read on.
                Otherwise the source waits, and every image is answered.
            timeout: seconds that the source may take for its next image, the first included; None
                for any time. While images wait to be taken, it is not asked for one.
            deadline_ms: as for ``predict``, from when the source delivered the image. Images then
                run one by one. One that is too old when its turn comes leaves at exit 1.

        Raises:
            DataError: an image is of another type or shape. An exception of ``images`` itself is
                raised too, after the results of the images before it.
            StalledError: the source took longer than ``timeout``.
            UsageError: ``batch`` or ``ahead`` is not a whole number of at least 1, ``timeout`` or
                the deadline not a positive number, ``batch`` is more than 1 with a deadline, or
                there is no such color.
            BackendError: a logit is NaN or infinite, or the session is closed.
        """
        check_several(images)
        answers = self._run_streams(
            {"": images}, color, batch, ahead, drop_oldest, timeout, deadline_ms, patient=False
        )
        for _, result in answers:
            if isinstance(result, StreamError):
                raise result.error
            yield result

    def streams(
        self,
        sources: Mapping[str, Iterable[ImageLike]],
        *,
        color: str = "rgb",
        batch: int | None = None,
        ahead: int | None = None,
        drop_oldest: bool = False,
        timeout: float | None = None,
        deadline_ms: float | None = None,
    ) -> Iterator[tuple[str, Result | StreamError]]:
        """Classify images of several cameras, by name: a thread reads each, and batches mix them.

        Sources whose images wait are served in turn. Yields the source's name with each result or
        error; those of one source are in its order, and counted under its name
        (``Statistics.streams``).

        A bad image, or a source that fails, stops no other source: a ``StreamError`` takes the
        place of its result. A source that stalls yields one with a ``StalledError`` every
        ``timeout`` seconds, and goes on when it delivers again. Other arguments and errors are
        those of ``stream``; ``ahead`` is of each source.
        """
        if not isinstance(sources, Mapping):
            raise UsageError(
                "sources must be a dict of names and images, such as {'gate': frames}, found "
                f"{type(sources).__name__}; for a single source there is stream"
            )
        for name, images in sources.items():
            if not isinstance(name, str):
                raise UsageError(f"a source's name must be text, such as 'gate', found {name!r}")
            check_several(images)
        return self._run_streams(
            sources, color, batch, ahead, drop_oldest, timeout, deadline_ms, patient=True
        )

    def _run_streams(
        self,
        sources: Mapping[str, Iterable[ImageLike]],
        color: str,
        batch: int | None,
        ahead: int | None,
        drop_oldest: bool,
        timeout: float | None,
        deadline_ms: float | None,
        *,
        patient: bool,
    ) -> Iterator[tuple[str, Result | StreamError]]:
        check_color(color)  # once, rather than for every image
        size = self.max_batch if batch is None else min(whole("batch", batch), self.max_batch)
        if timeout is not None:
            positive("timeout", timeout)
        if deadline_ms is not None:
            positive("deadline_ms", deadline_ms)
            if batch is not None and batch > 1:
                raise UsageError(
                    f"a deadline is for one image, found batch={batch}; leave out batch, or the "
                    "deadline"
                )
            size = 1
            if not self._walk.clock.calibrated:
                self.warm_up()  # before the first image, which would be late
        if ahead is None:
            ahead = 1 if drop_oldest else math.ceil(2 * size / max(1, len(sources)))
        ahead = whole("ahead", ahead)

        def prepare(image: ImageLike) -> Inputs:
            return self.prepare([image], color=color)

        intakes = {n: Intake(images, prepare, ahead, drop_oldest) for n, images in sources.items()}
        readers = Readers(intakes, timeout=timeout, patient=patient)

        def run(items: list[Item]) -> list[Result]:
            return self._run(
                Inputs.join(item.images for item in items if item.images is not None),
                [item.start for item in items],
                deadline_ms,
                streams=[item.source for item in items],
            )

        def miss(item: Item) -> None:
            self.miss(item.source, dropped=item.dropped, errors=int(item.error is not None))

        with self._lock:
            for name in sources:
                self._recorder.begin(name)
        return run_streams(readers, size, run, self._check_open, miss)

    def run(
        self,
        images: Inputs,
        *,
        starts: Sequence[float] | None = None,
        deadline_ms: float | None = None,
        prepare_ms: float = 0.0,
        streams: Sequence[str] | None = None,
        memories: Sequence[Memory | None] | None = None,
    ) -> list[Result]:
        """Classify images that ``prepare`` returned, at most the largest batch.

        Args:
            images: what ``prepare`` returns.
            starts: ``time.perf_counter()`` at which each image's latency begins; default now.
            deadline_ms: as for ``predict``; for one image.
            prepare_ms: time spent on ``images`` before this call, which counts towards a frame
                rate; 0 where another thread prepares them.
            streams: the name of each image's stream, under which ``Statistics.streams`` counts it;
                default none.
            memories: of the frames before each image, one for each camera or region: its answer is
                then averaged over time. None for an image on its own.

        Raises:
            UsageError: a deadline for several images, not as many ``starts``, ``streams`` or
                ``memories`` as images, a name that is no text, a memory that is none, is there
                twice, is of other classes or not for this policy, or ``images`` is not what
                ``prepare`` returns.
            BackendError: a logit is NaN or infinite, or the session is closed.
        """
        self._check_input(images, self.max_batch)
        if starts is not None and len(starts) != len(images):
            raise UsageError(f"expected {len(images)} starts, one per image, found {len(starts)}")
        if streams is not None and len(streams) != len(images):
            raise UsageError(f"expected {len(images)} streams, one per image, found {len(streams)}")
        for name in streams or ():
            if not isinstance(name, str):
                raise UsageError(f"a stream's name must be text, found {name!r}")
        if deadline_ms is not None and len(images) != 1:
            raise UsageError(f"a deadline is for one image, found {len(images)}")
        if memories is not None:
            memories = _checked_memories(memories, len(images))
        starts = [time.perf_counter()] * len(images) if starts is None else starts
        return self._run(images, starts, deadline_ms, prepare_ms, streams, memories)

    def miss(self, stream: str, *, dropped: int = 0, errors: int = 0) -> None:
        """Count images of a stream that get no answer, for ``Statistics``; ``streams`` does it.

        For who reads sources and calls ``run``. ``dropped`` images were replaced by newer ones,
        ``errors`` could not be used.
        """
        with self._lock:
            self._recorder.miss(stream, dropped=dropped, errors=errors)

    def _run(
        self,
        images: Inputs | GpuImages,
        starts: Sequence[float],
        deadline_ms: float | None = None,
        prepare_ms: float = 0.0,
        streams: Sequence[str] | None = None,
        memories: Sequence[Memory | None] | None = None,
    ) -> list[Result]:
        """Do what ``run`` does, with arguments that are known to fit."""
        with self._lock:
            self._check_open()
            count, rate = len(starts), self._rate
            averages = None if memories is None else self._averages(memories, starts)
            if (averages is not None) is not self._averaging:
                self._follow(averaging=averages is not None)
            if deadline_ms is not None and not self._walk.clock.calibrated:
                if isinstance(images, Inputs):
                    self._calibrate(images)
                else:
                    self.warm_up()
            try:
                if count == 1:
                    results = [
                        self._walk.run_one(images, self._policy, starts[0], deadline_ms, averages)
                    ]
                else:
                    results = self._walk.run_batch(images, self._policy, starts, averages)
            finally:
                if type(images) is not Inputs:
                    self._give_back(images)
            if averages is not None:
                averages.keep()
            if rate is not None:
                network = max(result.network_ms for result in results) / count
                pace = rate.pace
                rate.observe([result.exit for result in results], network, prepare_ms / count)
                results = [dataclasses.replace(result, pace=pace) for result in results]
            self._record(results, streams)
        self._tell(results)
        return results

    def count(self, results: Sequence[Result]) -> None:
        """Count answers of ``run_until`` or ``run_from`` in ``stats``, and give them to hooks.

        Raises:
            UsageError: one stopped at a limit, and so has no answer yet.
        """
        if any(result.stopped == "limit" for result in results):
            raise UsageError("an image that stopped at a limit has no answer yet to count")
        with self._lock:
            self._record(results)
        self._tell(results)

    def _record(self, results: Sequence[Result], streams: Sequence[str] | None = None) -> None:
        for result, stream in zip(results, streams or repeat(""), strict=False):
            self._recorder.add(result, stream)

    def _tell(self, results: Sequence[Result]) -> None:
        for hook in self.hooks:
            for result in results:
                hook(result)

    def _averages(
        self, memories: Sequence[Memory | None], starts: Sequence[float]
    ) -> Averages | None:
        """Return what averages a batch with its memories; None where no image has one.

        Raises:
            UsageError: the policy takes none, or one is of other classes.
        """
        if not any(memories):
            return None
        self._memories.update(memory for memory in memories if memory is not None)
        if self._not_averaged:
            fitting = ", ".join(name for name, kind in POLICIES.items() if kind.averages)
            raise UsageError(
                f"the policy {self._not_averaged[0]} cannot decide from answers averaged over "
                f"frames, which a memory makes: expected one of {fitting}; set such a policy, or "
                "leave out the memory"
            )
        return Averages(memories, starts, self.manifest.labels or self.manifest.num_classes)

    @property
    def _first_pass(self) -> int:
        """Index of the pass that an image is resized for first."""
        return 0 if self._walk.whole is None else -1

    @property
    def stats(self) -> Statistics:
        """Counts and latencies of the session so far."""
        with self._lock:
            return self._recorder.snapshot()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_in_float32(
    path: str | Path,
    *,
    backend: str = "auto",
    threads: int | None = None,
    device: str | None = None,
    tensorrt: TensorRTOptions | None = None,
    trusted_keys: Sequence[KeySource] | None = None,
) -> Session:
    """Open a bundle as ``Session.open`` does, but in float32, whatever the evidence is."""
    from lgvit_edge.runtime.selection import choose

    keys = None if trusted_keys is None else read_trusted(trusted_keys)
    bundle = open_bundle(path, trusted_keys=keys)
    policy = bundle_policy(bundle.manifest)
    options = ChainOptions(threads=threads, device=device, tensorrt=tensorrt)
    chosen = choose(bundle, backend, options)
    return Session(bundle, policy, chain_opener(bundle, chosen.backend, chosen.options))


def _checked_memories(memories: Sequence[Memory | None], count: int) -> Sequence[Memory | None]:
    """Return memories that fit so many images.

    Raises:
        UsageError: they do not.
    """
    if not isinstance(memories, Sequence):
        raise UsageError(f"memories must be a list with one per image, found {memories!r}")
    if len(memories) != count:
        raise UsageError(f"expected {count} memories, one per image, found {len(memories)}")
    for memory in memories:
        if not isinstance(memory, (Memory, type(None))):
            raise UsageError(f"expected a Memory for each image, or None, found {memory!r}")
    given = [id(memory) for memory in memories if memory is not None]
    if len(set(given)) < len(given):
        raise UsageError(
            "a memory is there for two images that run together, and the second frame would not "
            "know of the first; run frames of one camera one after the other"
        )
    return memories
