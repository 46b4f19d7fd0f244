"""Runs segments with ONNX Runtime, on the CPU or CUDA.

Buffers are allocated once for the largest batch. Each pair of graph and batch size gets its I/O
binding on first use; one segment's output address is the next one's input. A segment's blocks and
its head are sessions of their own, so that the head can be left out.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.optional import require
from lgvit_edge.bundle.builds import graphs_of, parts_of
from lgvit_edge.bundle.directory import Bundle
from lgvit_edge.bundle.manifest import GraphPart, GraphSpec, TensorSpec
from lgvit_edge.errors import BackendError, BundleError, UsageError, in_one_line
from lgvit_edge.machine.cpu import available_cores
from lgvit_edge.machine.gpu import find_gpu, no_gpu
from lgvit_edge.machine.wheels import extra
from lgvit_edge.runtime.backends.base import (
    ON_CPU,
    ON_GPU,
    Candidate,
    Chain,
    ChainOptions,
    input_buffers,
)
from lgvit_edge.runtime.backends.ort_pool import can_share, join_pool, open_session, refuse_pool

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def has_cuda() -> bool:
    """Return whether this onnxruntime was built to run on NVIDIA's GPUs.

    Raises:
        MissingDependency: onnxruntime is not installed.
    """
    ort = require("onnxruntime", extra="cpu")
    return _PROVIDERS["cuda"] in ort.get_available_providers()


def open_chain(bundle: Bundle, names: list[str], options: ChainOptions) -> Chain:
    """Open a chain of a bundle's graphs; see ``Backend.open_chain``."""
    return OrtChain(bundle, names, options)


def candidates(bundle: Bundle, options: ChainOptions) -> list[Candidate]:
    """List ONNX Runtime, on the GPU where it can use one."""
    gpu = options.device != "cpu" and find_gpu(options.gpu) is not None and has_cuda()
    return [Candidate("onnxruntime", rank=ON_GPU if gpu else ON_CPU)]


@dataclass
class _Buffer:
    """Memory of one tensor for up to ``max_batch`` rows; a smaller batch uses the first rows."""

    array: NDArray[Any]
    device_value: Any = None  # OrtValue on the GPU; then ``array`` is its staging copy

    @property
    def address(self) -> int:
        if self.device_value is not None:
            return int(self.device_value.data_ptr())
        return self.array.ctypes.data

    def read(self) -> NDArray[Any]:
        """Return all rows: on the CPU the array itself, of the GPU a copy."""
        return self.array if self.device_value is None else self.device_value.numpy()

    def write(self, rows: NDArray[Any]) -> None:
        """Take the first rows anew."""
        if self.device_value is None:
            self.array[: len(rows)] = rows
        else:  # rare, so all rows go through the host and there is no kernel for it
            whole = self.read()
            whole[: len(rows)] = rows
            self.device_value.update_inplace(whole)


class _Run(NamedTuple):
    """A session with its inputs and outputs bound."""

    session: Any
    binding: Any

    def __call__(self) -> None:
        self.session.run_with_iobinding(self.binding)


class _Plan(NamedTuple):
    """What runs a segment at one batch size."""

    blocks: _Run  # or the whole segment
    head: _Run | None
    logits: NDArray[np.float32]


class OrtChain:
    """Runs a ``ChainInParts`` of segments in ONNX Runtime sessions."""

    _profiles: Path | None = None  # the folder that operators' times are written to
    _in_parts = True  # whether blocks and heads are graphs of their own where the bundle has them

    def __init__(self, bundle: Bundle, names: list[str], options: ChainOptions) -> None:
        """Load the graphs of these names; without ``device`` CUDA is used where it works.

        Raises:
            MissingDependency: onnxruntime is not installed.
            BackendError: the device is not there, another session of this process has a pool of
                another size or kind, or this onnxruntime has no global one.
            BundleError: a graph cannot be loaded or is not what the manifest says.
            UsageError: there is no such thread pool.
        """
        thread_pool, device = options.thread_pool or "global", options.device
        if thread_pool not in ("global", "private"):
            raise UsageError(f"thread_pool must be global or private, found {thread_pool!r}")
        self._ort = require("onnxruntime", extra="cpu")
        if options.thread_pool == "global" and not can_share(self._ort):
            raise BackendError(
                "thread_pool='global' needs onnxruntime 1.23 or newer, found "
                f"{self._ort.__version__}; leave it out for private pools, which are slower, or "
                "run: pip install --upgrade 'lgvit-edge[cpu]'"
            )
        self._device, self._gpu = _choose_device(options), options.gpu
        self._shared = thread_pool == "global"
        if self._shared:
            self._threads = join_pool(self._ort, options.threads)
        else:
            refuse_pool()
            self._threads = options.threads or available_cores()
        graphs, parts = graphs_of(bundle), parts_of(bundle) if self._in_parts else {}
        self._graphs = [graphs[name] for name in names]
        self._parts = [parts.get(name) for name in names]
        self.apart = [part is not None for part in self._parts]
        self.max_batch = bundle.manifest.batch[2]
        try:
            self._sessions = self._load_all(bundle.root)
        except _CudaFails:
            if device is not None:
                raise BackendError(
                    "ONNX Runtime's CUDA provider does not start here: its CUDA or cuDNN "
                    "libraries, or the driver, are missing or of another version; run: "
                    "lgvit-edge doctor"
                ) from None
            self._device = "cpu"
            self._sessions = self._load_all(bundle.root)
        self._allocate()
        self._plans: dict[int, list[_Plan | None]] = {}  # by batch size, bound on first use
        self._plan: list[_Plan | None] = []
        self._batch = self._next = 0

    def start(self, images: NDArray[Any], segment: int = 0) -> None:
        """See ``Chain.start``."""
        self._next = segment
        self._resize(len(images))
        np.copyto(self._buffers[segment].array[: self._batch], images)

    def step(self) -> NDArray[np.float32]:
        """See ``Chain.step``."""
        planned = self._planned()
        planned.blocks()
        if planned.head is not None:
            planned.head()
        self._next += 1
        return planned.logits

    def step_blocks(self) -> None:
        """See ``ChainInParts.step_blocks``."""
        self._planned().blocks()
        self._next += 1

    def load_blocks(self, segments: Sequence[int]) -> None:
        """See ``ChainInParts.load_blocks``; they are loaded."""

    def keep(self, rows: NDArray[np.intp]) -> None:
        """See ``Chain.keep``."""
        if len(rows) == self._batch:
            return
        self._resize(len(rows))
        buffer = self._buffers[self._next]
        buffer.write(buffer.read()[rows])

    def hidden(self) -> NDArray[Any]:
        """See ``SplitChain.hidden``."""
        return self._buffers[self._next].read()[: self._batch].copy()

    def resume(self, hidden: NDArray[Any], segment: int) -> None:
        """See ``SplitChain.resume``."""
        self._next = segment
        self._resize(len(hidden))
        self._buffers[segment].write(hidden)

    def describe(self) -> dict[str, Any]:
        """See ``Chain.describe``."""
        return {
            "backend": "onnxruntime",
            "version": self._ort.__version__,
            "device": f"cuda:{self._gpu}" if self._gpu else self._device,
            **({} if self._device == "cpu" else {"gpu": self._gpu}),
            "threads": self._threads,
            "thread_pool": "global" if self._shared else "private",
        }

    def close(self) -> None:
        """See ``Chain.close``."""
        self._plans.clear()
        self._plan = []
        self._sessions.clear()

    def _load_all(self, root: Path) -> list[list[Any]]:
        """Load graphs in parallel, because loading and optimizing one uses one core.

        Returns the sessions of each segment: its own, or those of blocks and head.
        """
        each = [p or (g,) for p, g in zip(self._parts, self._graphs, strict=True)]
        with ThreadPoolExecutor(min(self._threads, len(self._graphs))) as pool:
            loading = [
                [pool.submit(self._load, root / g.graph.file, g) for g in graphs] for graphs in each
            ]
            return [[session.result() for session in sessions] for sessions in loading]

    def _load(self, path: Path, graph: GraphSpec | GraphPart) -> Any:
        providers: list[Any] = [_PROVIDERS["cpu"]]
        if self._device == "cuda":
            providers.insert(0, (_PROVIDERS["cuda"], {"device_id": str(self._gpu)}))
        try:
            str(path).encode()
        except UnicodeEncodeError:  # as with LC_ALL=C and a name beyond ASCII
            raise BundleError(
                f"{path}: ONNX Runtime opens files by names in UTF-8 alone: rename it, or set "
                "PYTHONUTF8=1"
            ) from None
        try:
            session, self._shared = open_session(
                self._ort,
                str(path),
                self._threads,
                shared=self._shared,
                providers=providers,
                profile=None if self._profiles is None else str(self._profiles / path.stem),
            )
        except Exception as error:  # onnxruntime has no common base class
            reason = in_one_line(error)
            raise BundleError(f"{path} cannot be loaded by ONNX Runtime: {reason}") from None
        if session.get_providers()[0] != _PROVIDERS[self._device]:
            # ONNX Runtime silently uses the CPU when CUDA's libraries fail; its speed must not be
            # reported as the GPU's.
            raise _CudaFails
        tensors = [_tensor(t) for t in (*session.get_inputs(), *session.get_outputs())]
        expected = [(t.name, t.dtype, t.shape) for t in (*graph.inputs, *graph.outputs)]
        if tensors != expected:
            raise BundleError(f"{path}: expected tensors {expected}, found {tensors}")
        return session

    def _allocate(self) -> None:
        image = functools.partial(self._buffer, on_device=False)
        self._buffers = input_buffers(self._graphs, image, self._buffer)
        self._logits = [self._buffer(g.logits, on_device=False).array for g in self._graphs]

    def _buffer(self, spec: TensorSpec, *, on_device: bool = True) -> _Buffer:
        shape = spec.for_batch(self.max_batch)
        if self._device == "cuda" and on_device:
            make = self._ort.OrtValue.ortvalue_from_shape_and_type
            value = make(list(shape), np.dtype(spec.dtype), "cuda", self._gpu)
            return _Buffer(np.empty((0, *shape[1:]), spec.dtype), value)
        return _Buffer(np.zeros(shape, spec.dtype))

    def _resize(self, batch: int) -> None:
        if batch != self._batch:
            self._batch = batch
            self._plan = self._plans.setdefault(batch, [None] * len(self._graphs))

    def _planned(self) -> _Plan:
        """Return what runs the next segment at the present batch size."""
        planned = self._plan[self._next]
        if planned is None:
            planned = self._plan[self._next] = self._bind(self._next, self._batch)
        return planned

    def _bind(self, index: int, batch: int) -> _Plan:
        graph, sessions = self._graphs[index], self._sessions[index]
        first, last = sessions[0].io_binding(), sessions[-1].io_binding()
        self._bind_tensor(first.bind_input, graph.inputs[0], self._buffers[index], batch)
        if len(sessions) == 1:
            last = first
        if graph.hidden is not None:
            between = self._buffers[index + 1]
            self._bind_tensor(first.bind_output, graph.hidden, between, batch)
            if last is not first:
                self._bind_tensor(last.bind_input, graph.hidden, between, batch)
        self._bind_tensor(last.bind_output, graph.logits, _Buffer(self._logits[index]), batch)
        head = None if last is first else _Run(sessions[1], last)
        return _Plan(_Run(sessions[0], first), head, self._logits[index][:batch])

    def _bind_tensor(self, bind: Any, spec: TensorSpec, buffer: _Buffer, batch: int) -> None:
        device, index = ("cpu", 0) if buffer.device_value is None else ("cuda", self._gpu)
        shape = list(spec.for_batch(batch))
        bind(spec.name, device, index, np.dtype(spec.dtype), shape, buffer.address)


class _CudaFails(Exception):
    """The CUDA provider was asked for and did not start."""


def _tensor(port: Any) -> tuple[str, str, tuple[int, ...]]:
    """Return name, dtype and shape of a session's input or output, as in a ``TensorSpec``."""
    kinds = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}
    shape = tuple(size if isinstance(size, int) else -1 for size in port.shape)
    return port.name, kinds.get(port.type, port.type), shape


def _choose_device(options: ChainOptions) -> str:
    """Return ``cpu`` or ``cuda``. A GPU that is not there is told first: no package brings it."""
    device = options.device
    if device not in (None, "cpu"):
        if find_gpu(options.gpu) is None:
            raise BackendError(no_gpu(options.gpu))
        if not has_cuda():
            raise BackendError(
                "this onnxruntime has no CUDA provider; run: pip uninstall onnxruntime && "
                f"pip install 'lgvit-edge[{extra('gpu')}]'"
            )
    return (device or ("cuda" if has_cuda() else "cpu")).partition(":")[0]
