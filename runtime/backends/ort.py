"""Runs segments with ONNX Runtime, on the CPU or CUDA.

Buffers are allocated once for the largest batch. Each pair of segment and batch size gets its I/O
binding on first use; one segment's output address is the next one's input.
"""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.optional import require
from lgvit_edge.bundle.builds import graphs_of
from lgvit_edge.bundle.directory import Bundle
from lgvit_edge.bundle.manifest import GraphSpec, TensorSpec
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


class OrtChain:
    """Runs a ``Chain`` of segments, each in an ONNX Runtime session."""

    _profiles: Path | None = None  # the folder that operators' times are written to

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
        graphs = graphs_of(bundle)
        self._graphs = [graphs[name] for name in names]
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
        # By batch size: each step's session, I/O binding and logits, bound on first use.
        self._plans: dict[int, list[tuple[Any, Any, NDArray[np.float32]] | None]] = {}
        self._plan: list[tuple[Any, Any, NDArray[np.float32]] | None] = []
        self._batch = self._next = 0

    def start(self, images: NDArray[Any], segment: int = 0) -> None:
        """See ``Chain.start``."""
        self._next = segment
        self._resize(len(images))
        np.copyto(self._buffers[segment].array[: self._batch], images)

    def step(self) -> NDArray[np.float32]:
        """See ``Chain.step``."""
        index = self._next
        planned = self._plan[index]
        if planned is None:
            planned = self._plan[index] = self._bind(index, self._batch)
        session, binding, logits = planned
        session.run_with_iobinding(binding)
        self._next = index + 1
        return logits

    def keep(self, rows: NDArray[np.intp]) -> None:
        """See ``Chain.keep``."""
        if len(rows) == self._batch:
            return
        self._resize(len(rows))
        buffer = self._buffers[self._next]
        if buffer.device_value is None:
            buffer.array[: self._batch] = buffer.array[rows]
        else:  # rare, so rows go through the host and there is no kernel for it
            whole = buffer.device_value.numpy()
            whole[: self._batch] = whole[rows]
            buffer.device_value.update_inplace(whole)

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

    def _load_all(self, root: Path) -> list[Any]:
        """Load graphs in parallel, because loading and optimizing one uses one core."""
        with ThreadPoolExecutor(min(self._threads, len(self._graphs))) as pool:
            return list(pool.map(lambda g: self._load(root / g.graph.file, g), self._graphs))

    def _load(self, path: Path, graph: GraphSpec) -> Any:
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

    def _bind(self, index: int, batch: int) -> tuple[Any, Any, NDArray[np.float32]]:
        graph, session = self._graphs[index], self._sessions[index]
        binding = session.io_binding()
        source = self._buffers[index]
        self._bind_tensor(binding.bind_input, graph.inputs[0], source, batch)
        if graph.hidden is not None:
            target = self._buffers[index + 1]
            self._bind_tensor(binding.bind_output, graph.hidden, target, batch)
        logits = _Buffer(self._logits[index])
        self._bind_tensor(binding.bind_output, graph.logits, logits, batch)
        return session, binding, self._logits[index][:batch]

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
