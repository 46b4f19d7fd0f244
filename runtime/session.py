"""``Session``: opens a bundle and classifies images with it."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

from lgvit_edge._support.numbers import real, whole
from lgvit_edge._support.text import tell
from lgvit_edge.bundle.directory import Bundle, open_bundle
from lgvit_edge.errors import UsageError
from lgvit_edge.images.inputs import Inputs
from lgvit_edge.images.preprocess import ImageLike, check_color, check_several, several
from lgvit_edge.policies import POLICIES, Averages, Memory, Policy, Rule, as_policy
from lgvit_edge.runtime.backends.base import (
    Chain,
    ChainInParts,
    ChainOptions,
    GpuImages,
    TensorRTOptions,
)
from lgvit_edge.runtime.backends.registry import chain_opener
from lgvit_edge.runtime.loaded import LoadedBundle
from lgvit_edge.runtime.precision import Chosen, bundle_policy, to_compare
from lgvit_edge.runtime.reading import Intake, Item, Readers, StreamError
from lgvit_edge.runtime.result import Result
from lgvit_edge.runtime.stats import Recorder, Statistics
from lgvit_edge.runtime.streams import run_streams
from lgvit_edge.runtime.target_rate import TargetRate


class Session(LoadedBundle):
    """Classifies images with an opened bundle; each image stops at its first confident exit.

    Several threads may call at once: a lock lets one image or batch into the chain at a time, while
    others are resized. To run images in parallel, open a session per thread.

    Attributes:
        hooks: each is called with every ``Result``, in the thread that predicts; an exception it
            raises reaches the caller.
        notes: whether a policy is noted on standard error, once, for which nothing shows that the
            lower precision that ``auto`` took decides as float32 does.
    """

    def __init__(
        self, bundle: Bundle, policy: Policy | str, open_chain: Callable[[list[str]], Chain]
    ) -> None:
        """Wrap an opened bundle; use ``Session.open`` instead."""
        super().__init__(bundle, open_chain)
        self._recorder = Recorder(bundle.manifest.pass_numbers)
        self._rate: TargetRate | None = None
        self._point: str | None = None
        self._rule: Rule | None = None  # the policy's, for a chain that decides by it
        self._averaging = False  # whether the chain was last told to decide by none
        self._not_averaged: list[str] = []  # names of policies in use that take no memory
        self._chosen = Chosen("")
        self._noted: set[str] = set()  # policies that a note was made of
        self.hooks: list[Callable[[Result], None]] = []
        self.notes = True
        try:
            self.policy = policy
        except BaseException:
            self.close()
            raise

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

        Raises:
            BundleError: missing, damaged, unsafe or of another schema version.
            BackendError: the backend or device cannot run here, or no engine fits this GPU.
            MissingDependency: the backend is not installed.
            UsageError: an argument is invalid or not for this backend, the policy does not fit the
                exits, or there is no such point.
        """
        if policy is not None and point is not None:
            raise UsageError("give a policy or an operating point, not both")
        from lgvit_edge.runtime.selection import choose  # importing the runtime stays quick

        options = ChainOptions(threads, thread_pool, device, precision, tensorrt)
        bundle = open_bundle(path)
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
        session._point = point
        return session

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
        tracker = policy.start(self._exits)
        with self._lock:
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
            apart = self._walk.apart
            self.chain.load_blocks([i for i, r in enumerate(read) if apart[i] and not r])
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
        policy = bundle_policy(self.manifest, name)
        if self._chosen.lowered and self.manifest.points[name].guarantee is not None:
            raise UsageError(
                f"the point {name} is certified, and a certificate holds for the precision that it "
                f"was made in: expected float32, this session computes in "
                f'{self._chosen.options.precision}; open it with precision="fp32"'
            )
        self.policy = policy
        self._point = name

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
            _check_time("deadline_ms", deadline_ms)
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
            _check_time("timeout", timeout)
        if deadline_ms is not None:
            _check_time("deadline_ms", deadline_ms)
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
            for result, stream in zip(results, streams or repeat(""), strict=False):
                self._recorder.add(result, stream)
        for hook in self.hooks:
            for result in results:
                hook(result)
        return results

    def _averages(
        self, memories: Sequence[Memory | None], starts: Sequence[float]
    ) -> Averages | None:
        """Return what averages a batch with its memories; None where no image has one.

        Raises:
            UsageError: the policy takes none, or one is of other classes.
        """
        if not any(memories):
            return None
        if self._not_averaged:
            fitting = ", ".join(name for name, kind in POLICIES.items() if kind.averages)
            raise UsageError(
                f"the policy {self._not_averaged[0]} cannot decide from answers averaged over "
                f"frames, which a memory makes: expected one of {fitting}; set such a policy, or "
                "leave out the memory"
            )
        return Averages(memories, starts, self.manifest.labels or self.manifest.num_classes)

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
    def _first_pass(self) -> int:
        """Index of the pass that an image is resized for first."""
        return 0 if self._walk.whole is None else -1

    @property
    def _cure(self) -> str:
        if not self._chosen.lower:
            return super()._cure
        precision = self._chosen.options.precision
        return f'it was computed in {precision}: to compare in float32, open with precision="fp32"'

    @property
    def stats(self) -> Statistics:
        """Counts and latencies of the session so far."""
        with self._lock:
            return self._recorder.snapshot()

    def close(self) -> None:
        """See ``LoadedBundle.close``."""
        if self._lock.left:
            return
        with self._lock:
            if self._rate is not None:
                self._rate.detach()
            super().close()

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
) -> Session:
    """Open a bundle as ``Session.open`` does, but in float32, whatever the evidence is."""
    from lgvit_edge.runtime.selection import choose

    bundle = open_bundle(path)
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


def _check_time(name: str, value: object) -> None:
    """Refuse a span of time that is none.

    Raises:
        UsageError: it is not a positive number, or infinite; names what it was given for.
    """
    if not 0 < real(value) < math.inf:
        raise UsageError(f"{name} must be a positive number, found {value!r}")
