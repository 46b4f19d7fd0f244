"""Runs segments as TensorRT engines on one CUDA stream.

The hidden state never leaves the GPU: segment i writes the buffer that segment i + 1 reads, at
addresses bound once. All contexts share one scratch buffer, because they run one after the other.
Each segment and batch size has one CUDA graph (the kernels, and the copy of logits to page-locked
memory) and its own context, which must not change once the graph is recorded. Where CPU and GPU
share memory there are no copies: kernels read images and write logits where the CPU does. A batch
is padded to the next of a few sizes, all of which are prepared when the chain is opened. The host
waits on an event, never on the device. Images that are on the device are resized there, straight
into a pass's input.
"""

from __future__ import annotations

import contextlib
import gc
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.pace import paced
from lgvit_edge._support.text import tell
from lgvit_edge.bundle.builds import graphs_of
from lgvit_edge.bundle.directory import Bundle
from lgvit_edge.bundle.manifest import TensorSpec
from lgvit_edge.errors import BackendError
from lgvit_edge.policies import Rule
from lgvit_edge.runtime.backends.base import Chain, ChainOptions, GpuImages, TensorRTOptions
from lgvit_edge.runtime.backends.device_exit import DeviceExit, check_decisions, check_supported
from lgvit_edge.runtime.backends.tensorrt_engine import (
    EngineLoader,
    attach_scratch,
    choose_build,
    scratch_size,
)
from lgvit_edge.runtime.backends.waiting import Waits
from lgvit_edge.runtime.cuda.bindings import open_cuda
from lgvit_edge.runtime.cuda.resize import Resizer
from lgvit_edge.runtime.samples import read_samples


def open_chain(bundle: Bundle, names: list[str], options: ChainOptions) -> Chain:
    """Open a chain of a bundle's graphs; see ``Backend.open_chain``."""
    return TensorRTChain(bundle, names, options)


class TensorRTChain:
    """Runs a ``Chain`` of segments, each a TensorRT engine."""

    def __init__(self, bundle: Bundle, names: list[str], options: ChainOptions) -> None:
        """Load engines, allocate every buffer and record the graphs of every padded batch size.

        Raises:
            BackendError: no GPU, no build that runs here, out of memory, or CUDA refuses.
            BundleError: an engine's file is missing or damaged.
            MissingDependency: no CUDA binding is installed.
        """
        self._options = options.tensorrt or TensorRTOptions()
        graphs = graphs_of(bundle)
        self._graphs = [graphs[name] for name in names]
        self.max_batch = bundle.manifest.batch[2]
        self._padded_sizes = padded_sizes(self.max_batch)
        self._gpu = options.gpu
        folder, self._build, self._trt = choose_build(bundle, self._options.engines, self._gpu)
        self._cuda = open_cuda(self._options.binding, self._gpu)
        zero_copy = self._options.zero_copy
        self._zero_copy = self._cuda.device.integrated if zero_copy is None else zero_copy
        manifest = bundle.manifest
        views = {
            f"segment_{i}": manifest.views[b]
            for i, b in enumerate(manifest.begins)
            if b is not None
        }
        views["baseline"] = manifest.views[-1]
        self._resizers = {  # by the segment that begins a pass
            index: Resizer(self._cuda, self._gpu, *views[name])
            for index, name in enumerate(names)
            if name in views
        }
        self._closed = False
        self._names = names
        # By segment and padded batch size. A recorded graph is None where kernels are launched one
        # by one.
        self._contexts: dict[tuple[int, int], Any] = {}
        self._recorded: dict[tuple[int, int], Any] = {}
        self._not_recorded: dict[str, str] = {}  # why, by segment and padded batch size
        self._device: DeviceExit | None = None  # decides by the rule that it follows, if any
        self._follows = False
        self._not_on_device = ""  # why the host alone decides, where the device was to
        self._decided = 0  # segments that the device runs, until it has decided to stop
        self._engines: list[Any] = []
        self._loader: EngineLoader | None = None
        try:
            self._loader = EngineLoader(bundle, folder, self._build, self._trt)
            self._engines = [self._loader.load(name, graphs[name]) for name in names]
            self._allocate()
            self._batch = self._next = self._queued = 0
            self._sizes: list[int] = [0] * len(names)  # the batch each segment was queued with
            self._queued_at = [0.0] * len(names)
            self._waits = Waits()
            # Rows of the batch that go on; None for all. Applied when the next segment is queued.
            self._rows: NDArray[np.intp] | None = None
            if self._loader.compiles:
                kept = self._loader.cache_file
                later = f"; later starts take them from {kept}" if kept else ""
                tell(
                    f"{self._trt.library} compiles {len(names)} engines for "
                    f"{self._cuda.device.name}, {len(self._padded_sizes)} batch sizes each{later}"
                )
            works = [(index, size) for size in self._padded_sizes for index in range(len(names))]
            macs = [self._graphs[index].macs for index, _ in works]
            for index, size in paced("compiled", works, macs) if self._loader.compiles else works:
                self._prepare(index, size)
            self._loader.save_cache()  # no other size will be compiled
            if self._not_recorded:
                warnings.warn(
                    f"{'; '.join(self._not_recorded)}: without a CUDA graph, which is slower, "
                    f"because {next(iter(self._not_recorded.values()))}; to be "
                    "quiet about it: --no-cuda-graphs, or TensorRTOptions(cuda_graphs=False)",
                    stacklevel=4,
                )
            if self._options.device_exit and len(names) > 1:
                check_supported(self._cuda.device, self.max_batch, len(self._images))
                self._open_device_exit(bundle)
        except BaseException:
            self.close()
            raise

    @property
    def tolerance(self) -> float | None:
        """See ``Chain``: what somebody accepted for these engines, if somebody did."""
        return self._build.tolerance

    def start(self, images: NDArray[Any], segment: int = 0) -> None:
        """See ``Chain.start``; a closed chain raises ``BackendError``."""
        self._begin(len(images), segment)
        image, address = self._images[segment]
        np.copyto(image[: self._batch], images)
        if not self._zero_copy:
            size = _bytes(self._graphs[segment].inputs[0], self._batch)
            self._cuda.upload(address, image.ctypes.data, size)
        self._run_ahead()

    def start_on_gpu(self, images: GpuImages, segment: int = 0) -> None:
        """See ``GpuChain.start_on_gpu``; a closed chain raises ``BackendError``."""
        self._begin(len(images), segment)
        self._resizers[segment].start(images.images, images.color, self._images[segment][1])
        self._run_ahead()

    def give_back(self) -> None:
        """See ``GpuChain.give_back``."""
        for resizer in self._resizers.values():
            resizer.give_back()

    def to_host(self, images: GpuImages) -> list[NDArray[Any]]:
        """See ``GpuChain.to_host``."""
        resizers = self._resizers.values()
        return [resizer.to_host(images.images, images.color) for resizer in resizers]

    def step(self) -> NDArray[np.float32]:
        """See ``Chain.step``."""
        index = self._next
        if index < self._decided:
            return self._told(index)
        if self._queued == index:
            self._queue()
        size, rows = self._sizes[index], self._rows
        # Never beyond the end of a pass: the next one's image is not there yet.
        if self._options.speculate and self._graphs[index].hidden is not None:
            self._queue()
        self._wait(index)
        self._next = index + 1
        logits = self._logits[index][:size]
        return logits if rows is None else logits[rows]

    def keep(self, rows: NDArray[np.intp]) -> None:
        """See ``Chain.keep``: rows move when the next segment is queued.

        If that already runs with all rows, rows of its output are dropped instead.
        """
        pending = self._rows
        if len(rows) < (self._batch if pending is None else len(pending)):
            self._rows = rows if pending is None else pending[rows]

    def follow(self, rule: Rule | None) -> None:
        """Let the device decide by the policy's rule, where it can; None for a policy without one.

        It only runs ahead: whether the next segment is needed is for the caller to say.
        """
        if self._device is None:
            return
        self._follows = rule is not None and self._device.follow(rule)
        if not self._follows:
            self._by_host("what decides is more than one exit's confidence or entropy")

    def describe(self) -> dict[str, Any]:
        """See ``Chain.describe``."""
        return {
            "backend": "tensorrt",
            "library": self._trt.library,
            "version": self._trt.version,
            "device": self._cuda.device.name,
            "gpu": self._gpu,
            "compute_capability": self._cuda.device.compute_capability,
            "driver": self._cuda.device.driver,
            "binding": self._cuda.name,
            "engines": self._build.tag,
            "zero_copy": self._zero_copy,
            "wait": self._options.wait,
            "cuda_graphs": sum(graph is not None for graph in self._recorded.values()),
            "not_recorded": dict(self._not_recorded),
            "speculate": self._options.speculate,
            "device_exit": self._follows,
            "not_on_device": "" if self._follows else self._not_on_device,
            "threads": 1,
        }

    def close(self) -> None:
        """See ``Chain.close``."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(BackendError):  # a speculated segment may still be running
            self._cuda.synchronize()
        self._recorded = {}
        self._device, self._follows = None, False
        # Contexts are freed before their engines, and both before the memory they use.
        self._contexts = {}
        self._engines = []
        self._loader = None
        self._cuda.close()

    def _begin(self, batch: int, segment: int) -> None:
        if self._closed:
            raise BackendError("the session is closed; open another one")
        self._batch, self._rows = batch, None
        self._next = self._queued = segment
        self._decided = 0

    def _run_ahead(self) -> None:
        """Queue all segments, if the device decides between them."""
        if self._follows:
            assert self._device is not None
            self._queued_at = [self._waits.clock()] * len(self._graphs)
            self._device.launch()
            self._cuda.record(self._device_event)
            self._decided = len(self._graphs)

    def _allocate(self) -> None:
        cuda, batch = self._cuda, self.max_batch
        # By the segment that begins a pass: its images, and their address.
        self._images = {
            index: self._shared(graph.inputs[0])
            for index, graph in enumerate(self._graphs)
            if index == 0 or self._graphs[index - 1].hidden is None
        }
        hidden = {i: graph.hidden for i, graph in enumerate(self._graphs) if graph.hidden}
        size = max((_bytes(spec, batch) for spec in hidden.values()), default=0)
        # Two in turn, of all passes: a segment reads one and writes the other.
        self._hidden = {turn: cuda.allocate(size) for turn in sorted({i % 2 for i in hidden})}
        # Each segment has its own: the next one may run while the CPU reads the last one's.
        outputs = [self._shared(graph.logits) for graph in self._graphs]
        self._logits: list[NDArray[np.float32]] = [array for array, _ in outputs]
        self._logits_address = [address for _, address in outputs]
        blocking = self._options.wait != "spin"
        self._events = [cuda.event(blocking=blocking) for _ in self._graphs]
        self._scratch_size = max(scratch_size(engine) for engine in self._engines)
        self._scratch = cuda.allocate(max(self._scratch_size, 1))

    def _shared(self, spec: TensorSpec) -> tuple[NDArray[Any], int]:
        """Allocate a tensor that the CPU sees: its array there, and its address for the engine.

        An image is replaced when the segment has ended that alone reads it and comes after its
        copy; logits are read when their segment has ended, and before it runs again.
        """
        shape = spec.for_batch(self.max_batch)
        if self._zero_copy:
            return self._cuda.mapped(shape, spec.dtype)
        array = self._cuda.pinned(shape, spec.dtype)
        return array, self._cuda.allocate(array.nbytes)

    def _context(self, index: int, size: int) -> Any:
        """Make the context of one segment for ``size`` rows, with shapes and addresses."""
        assert self._loader is not None  # only ``close`` drops it
        graph, context = self._graphs[index], self._loader.context(self._engines[index])
        attach_scratch(context, self._scratch, self._scratch_size)
        if self.max_batch > 1 and context.active_optimization_profile < 0:
            # TensorRT 8 gives the profile to an engine's first context alone, and without it every
            # enqueue fails (NvInferRuntime.h, IExecutionContext::setOptimizationProfileAsync).
            if not context.set_optimization_profile_async(0, self._cuda.stream):
                raise self._refused(index, "does not take its optimization profile")
        shape = graph.inputs[0].for_batch(size)
        if self.max_batch > 1 and not context.set_input_shape(graph.inputs[0].name, shape):
            raise self._refused(index, f"does not take a batch of {size}")
        begins = index in self._images
        source = self._images[index][1] if begins else self._hidden[(index - 1) % 2]
        addresses = {graph.inputs[0].name: source, graph.logits.name: self._logits_address[index]}
        if graph.hidden is not None:
            addresses[graph.hidden.name] = self._hidden[index % 2]
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise self._refused(index, f"does not take an address for {name!r}")
        return context

    def _queue(self) -> None:
        """Queue the next segment on the stream, followed by its event."""
        index = self._queued
        if self._rows is not None:
            self._compact(index)
        # Rows beyond the batch hold what earlier images left there. They are computed and never
        # read: a row's result does not depend on the other rows.
        size = self._padded(self._batch)
        self._queued_at[index] = self._waits.clock()
        graph = self._recorded[index, size]
        if graph is None:
            self._launch(index, size)
        else:
            self._cuda.launch(graph)
        self._cuda.record(self._events[index])
        self._sizes[index] = self._batch
        self._queued = index + 1

    def _padded(self, rows: int) -> int:
        return self._padded_sizes[bisect_left(self._padded_sizes, rows)]

    def _prepare(self, index: int, size: int) -> None:
        """Run a segment once, which lets TensorRT finish its set-up, then record it."""
        self._contexts[index, size] = self._context(index, size)
        self._launch(index, size)
        self._cuda.synchronize()
        self._recorded[index, size] = self._record(index, size)

    def _record(self, index: int, size: int) -> Any:
        context = self._contexts[index, size]
        capturable = getattr(context, "is_stream_capturable", lambda stream: True)
        if not self._options.cuda_graphs:
            return None
        kind = f"{self._names[index]}, {size} row{'s' if size > 1 else ''}"
        if not capturable(self._cuda.stream):
            self._not_recorded[kind] = f"{self._trt.library} says that it cannot be recorded"
            return None
        try:
            return self._cuda.runnable(self._captured(index, size))
        except BackendError as error:
            # As NVIDIA's trtexec does (sampleInference.cpp): slower, but it runs.
            self._not_recorded[kind] = str(error)
            return None

    def _captured(self, index: int, size: int, *, download: bool = True) -> Any:
        """Record a segment; return the graph, which is not runnable yet."""
        with _no_collection():
            self._cuda.begin_capture()
            try:
                self._launch(index, size, download=download)
            except BackendError:
                with contextlib.suppress(BackendError):
                    self._cuda.discard(self._cuda.end_capture())
                raise
            return self._cuda.end_capture()

    def _launch(self, index: int, size: int, *, download: bool = True) -> None:
        """Queue one segment kernel by kernel, for ``size`` rows."""
        graph, context = self._graphs[index], self._contexts[index, size]
        self._cuda.make_current()
        if not context.execute_async_v3(self._cuda.stream):
            raise self._refused(index, "does not run")
        if download and not self._zero_copy:
            logits = self._logits[index].ctypes.data
            self._cuda.download(logits, self._logits_address[index], _bytes(graph.logits, size))

    def _compact(self, index: int) -> None:
        """Move the rows that go on to the front of segment ``index``'s input, on the device.

        Rows ascend, so none is overwritten before it has moved.
        """
        assert self._rows is not None
        row = _bytes(self._graphs[index].inputs[0], 1)
        address = self._hidden[(index - 1) % 2]
        for place, source in enumerate(self._rows.tolist()):
            if place != source:
                self._cuda.move(address + place * row, address + source * row, row)
        self._batch, self._rows = len(self._rows), None

    def _wait(self, index: int) -> None:
        event, kind = self._events[index], (index, self._padded(self._sizes[index]))
        self._wait_for(event, kind, partial(self._cuda.done, event))

    def _wait_for(self, event: int, kind: tuple[int, int], done: Callable[[], bool]) -> None:
        """Wait until ``done``, which the event's end brings about at the latest."""
        block = partial(self._cuda.wait, event)
        if self._options.wait == "block":
            block()
        elif self._options.wait == "spin":
            while not done():
                pass
        else:
            self._waits.wait(kind, self._queued_at[kind[0]], done, block)

    def _open_device_exit(self, bundle: Bundle) -> None:
        """Make the graph of all segments, and compare its decisions with the host's on the samples.

        Whatever goes wrong, the host decides, as without it.
        """
        try:
            if self._not_recorded:
                raise BackendError(next(iter(self._not_recorded.values())))
            self._device_event = self._cuda.event(blocking=self._options.wait != "spin")
            graphs: list[Any] = []
            try:
                for index in range(len(self._graphs)):
                    graphs.append(self._captured(index, 1, download=False))
                classes = self._graphs[0].logits.shape[-1]
                self._device = DeviceExit(self._cuda, graphs, self._logits_address, classes)
            finally:
                for graph in graphs:
                    self._cuda.discard(graph)
            tolerance = bundle.manifest.parity.tolerance
            check_decisions(self._run_through, read_samples(bundle)[0].of(0), tolerance)
        except BackendError as error:
            self._device = None
            self._by_host(str(error))
        self._follows = False

    def _by_host(self, reason: str) -> None:
        self._not_on_device = reason
        warnings.warn(
            f"the host decides where images stop, not the device, because {reason}; to be quiet "
            "about it leave out --device-exit, or TensorRTOptions(device_exit=True)",
            stacklevel=4,
        )

    def _run_through(
        self, images: NDArray[Any], rule: Rule | None
    ) -> tuple[NDArray[np.float32], int]:
        """Run all segments; return their logits ``[M + 1, C]``, and where the device stopped.

        That is a segment. Without a rule the host runs them.
        """
        self._follows = rule is not None
        if rule is not None:
            self.follow(rule)
        self.start(images)
        logits, stopped = [], -1
        for index in range(len(self._graphs)):
            logits.append(self.step()[0].copy())
            if rule is not None and stopped < 0 and self._decided == index + 1:
                stopped = index
        return np.stack(logits), stopped

    def _told(self, index: int) -> NDArray[np.float32]:
        """Wait for logits of a segment that the device runs in the graph of all."""
        device = self._device
        assert device is not None
        event = self._device_event
        kind = (index, 0)  # another than when the host launches it
        self._wait_for(event, kind, lambda: device.told(index) or self._cuda.done(event))
        if not device.told(index):
            device.recount()
            raise BackendError(
                f"the graph of all segments ended without the logits of {self._names[index]}; open "
                "the session without --device-exit, or TensorRTOptions(device_exit=True)"
            )
        self._next = index + 1
        if not device.goes_on(index):
            self._decided = self._queued = index + 1  # from here on, whoever steps runs it
        logits: NDArray[np.float32] = device.logits[index]
        return logits

    def _refused(self, index: int, what: str) -> BackendError:
        return BackendError(
            f"the engine of {self._names[index]} {what}: {self._trt.reason()}; free memory on the "
            "GPU, or run: lgvit-edge doctor"
        )


def padded_sizes(largest: int) -> list[int]:
    """Return the batch sizes that engines run with: the powers of two, and the largest batch.

    They are few, because each costs every segment a context, a graph and time at the start.
    """
    return [*(1 << n for n in range((largest - 1).bit_length())), largest]


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector from freeing CUDA memory, which would spoil a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _bytes(spec: TensorSpec, batch: int) -> int:
    return int(np.prod(spec.for_batch(batch))) * np.dtype(spec.dtype).itemsize
