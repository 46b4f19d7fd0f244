"""The interface to CUDA that the TensorRT chain uses: one device, one stream, a dozen calls.

It has two implementations, chosen by ``bindings.open_cuda``: pycuda, and NVIDIA's cuda-python. Both
use the device's primary context, which other libraries of the process (PyTorch, OpenCV) share.
"""

from __future__ import annotations

import ctypes
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lgvit_edge.errors import BackendError
from lgvit_edge.runtime.cuda.driver import Driver, Refused
from lgvit_edge.runtime.cuda.graphs import GraphInParts

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: the default stream of other libraries is not waited for
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may go on using CUDA
_BLOCKING_SYNC, _DISABLE_TIMING = 1, 2  # CU_EVENT_...
_DEVICEMAP = 2  # CU_MEMHOSTALLOC_DEVICEMAP
# CU_POINTER_ATTRIBUTE_..., and CU_MEMORYTYPE_HOST
_MEMORY_TYPE, _DEVICE_POINTER, _DEVICE_ORDINAL, _HOST = 2, 3, 9, 1
_MB = 2**20
# Our kernels, as text that each driver compiles for its GPU; tools/ptx.py makes it.
_KERNELS = Path(__file__).with_name("kernels")


class Cuda(ABC):
    """Allocates memory, copies and runs graphs on one CUDA device and a stream of its own.

    Addresses are plain integers. Copies are queued on the stream and return at once. Every method
    raises ``BackendError`` with the driver's message when a call fails.

    Any thread may call, one at a time. As in CUDA's own runtime, each method makes the device's
    primary context current in the calling thread and leaves it so, because TensorRT needs that.

    A binding starts every method with ``_use``, and registers with ``_own`` how each object is
    freed: newest first. It has no CUDA graphs of its own (pycuda has none): those go through the
    driver's library.
    """

    name: str  # "pycuda" or "cuda-python"
    stream: int  # handle of the stream, for TensorRT

    def __init__(self, driver: Driver, index: int) -> None:
        self._driver = driver
        self.device = driver.device(index)
        self._owned = ExitStack()
        self._events: dict[int, Any] = {}
        self._others: ctypes.c_void_p | None = None  # the event that ``follow`` records
        self._previous = driver.current()
        self._thread = threading.get_ident()
        self._closed = False
        self._context = self._retain(index)
        try:
            self._use()
            self.stream = self._make_stream()
            self._handle = ctypes.c_void_p(self.stream)
        except BaseException:
            self.close()
            raise

    def make_current(self) -> None:
        """Make the device the calling thread's, before TensorRT is called."""
        self._use()

    def allocate(self, size: int) -> int:
        """Allocate device memory of ``size`` bytes, aligned to 256; freed by ``close``."""
        self._use()
        try:
            return self._device_memory(max(size, 1))  # CUDA refuses to allocate nothing
        except Refused as error:
            raise self._explain(error, size, "") from None

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Allocate a zeroed page-locked host array; must not be used after ``close``."""
        return self._host_array(shape, np.dtype(dtype), 0)[0]

    def mapped(self, shape: tuple[int, ...], dtype: DTypeLike) -> tuple[NDArray[Any], int]:
        """Do what ``pinned`` does; return the array, and its address for kernels, aligned to 256.

        The device reads and writes it in place. The two addresses may differ, and it must use its
        own (cuda.h, ``cuMemHostGetDevicePointer``).
        """
        array, whole = self._host_array(shape, np.dtype(dtype), _DEVICEMAP)
        return array, self._device_address(whole)

    @abstractmethod
    def upload(self, target: int, source: int, size: int) -> None:
        """Queue a copy from page-locked host memory to the device."""

    @abstractmethod
    def download(self, target: int, source: int, size: int) -> None:
        """Queue a copy from the device to page-locked host memory."""

    @abstractmethod
    def move(self, target: int, source: int, size: int) -> None:
        """Queue a copy within the device."""

    def event(self, *, blocking: bool) -> int:
        """Make an event without timing; ``blocking`` lets ``wait`` sleep instead of spin."""
        self._use()
        flags = _DISABLE_TIMING | (_BLOCKING_SYNC if blocking else 0)
        # Callers get a number and no reference, so that close decides when the event is destroyed.
        number = len(self._events)
        self._events[number] = self._make_event(flags)
        return number

    @abstractmethod
    def record(self, event: int) -> None:
        """Queue the event behind everything on the stream."""

    @abstractmethod
    def done(self, event: int) -> bool:
        """Return whether everything before the event has run."""

    @abstractmethod
    def wait(self, event: int) -> None:
        """Wait until everything before the event has run."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for the whole stream."""

    def follow(self, stream: int) -> None:
        """Let what is queued from now on wait for what is on another stream of the device now.

        ``stream`` is its handle; 1 is the legacy default stream and 2 the thread's own.
        """
        self._use()
        call = self._driver.call
        if self._others is None:
            event = ctypes.c_void_p()
            call("cuEventCreate", ctypes.byref(event), _DISABLE_TIMING)
            self._own(call, "cuEventDestroy_v2", event)
            self._others = event
        call("cuEventRecord", self._others, ctypes.c_void_p(stream))
        call("cuStreamWaitEvent", self._handle, self._others, 0)

    def wait_for_all(self) -> None:
        """Wait for every stream of the device's primary context, whoever made it."""
        self._use()
        self._driver.call("cuCtxSynchronize")

    def home(self, address: int) -> int | None:
        """Return the index of the GPU that an address is memory of; None for page-locked memory.

        Raises ``Refused`` where the driver does not know the address.
        """
        self._use()
        kind, gpu = ctypes.c_uint(), ctypes.c_int()
        self._ask_pointer(kind, _MEMORY_TYPE, address)
        if kind.value == _HOST:
            return None
        self._ask_pointer(gpu, _DEVICE_ORDINAL, address)
        return gpu.value

    def reach(self, address: int) -> int:
        """Return where kernels find what is at an address; ``Refused`` where they cannot."""
        self._use()
        found = ctypes.c_uint64()
        self._ask_pointer(found, _DEVICE_POINTER, address)
        return found.value

    def _ask_pointer(self, answer: Any, attribute: int, address: int) -> None:
        pointer = ctypes.c_uint64(address)
        self._driver.call("cuPointerGetAttribute", ctypes.byref(answer), attribute, pointer)

    def begin_capture(self) -> None:
        """Record what is queued from now on instead of running it (thread-local mode)."""
        self._use()
        self._driver.call("cuStreamBeginCapture_v2", self._handle, _THREAD_LOCAL)

    def end_capture(self) -> ctypes.c_void_p:
        """Stop recording and return what was recorded, for ``runnable``, which must follow.

        A failed capture raises ``BackendError`` here, and the stream works again. Call it from the
        thread that called ``begin_capture``.
        """
        self._use()
        graph = ctypes.c_void_p()
        self._driver.call("cuStreamEndCapture", self._handle, ctypes.byref(graph))
        return graph

    def runnable(self, graph: ctypes.c_void_p) -> ctypes.c_void_p:
        """Turn a graph into one for ``launch``; the graph is destroyed, also on a failure."""
        self._use()
        call, runnable = self._driver.call, ctypes.c_void_p()
        try:
            no_flags = ctypes.c_ulonglong(0)
            call("cuGraphInstantiateWithFlags", ctypes.byref(runnable), graph, no_flags)
        finally:
            self.discard(graph)
        self._own(call, "cuGraphExecDestroy", runnable)
        call("cuGraphUpload", runnable, self._handle)  # else the first launch does it
        return runnable

    def discard(self, graph: ctypes.c_void_p) -> None:
        """Destroy a graph that is not made runnable."""
        self._driver.call("cuGraphDestroy", graph)

    def graph_in_parts(self) -> GraphInParts:
        """Begin a graph that is put together by hand, for ``runnable`` or ``discard``."""
        self._use()
        return GraphInParts(self._driver, self._context)

    def launch(self, graph: ctypes.c_void_p) -> None:
        """Queue a graph on the stream."""
        self._use()
        self._driver.call("cuGraphLaunch", graph, self._handle)

    def kernel(self, file: str, name: str) -> ctypes.c_void_p:
        """Load one of our own kernels, from ``kernels/<file>.ptx``; the driver compiles it."""
        self._use()
        call, module, kernel = self._driver.call, ctypes.c_void_p(), ctypes.c_void_p()
        text = (_KERNELS / f"{file}.ptx").read_bytes()
        call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(text))
        self._own(call, "cuModuleUnload", module)
        call("cuModuleGetFunction", ctypes.byref(kernel), module, ctypes.c_char_p(name.encode()))
        return kernel

    def run(
        self,
        kernel: ctypes.c_void_p,
        blocks: tuple[int, int, int],
        threads: tuple[int, int, int],
        argument: ctypes.Structure,
    ) -> None:
        """Queue a kernel, whose only parameter is the structure ``argument``."""
        self._use()
        given = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
        sizes = map(ctypes.c_uint, (*blocks, *threads, 0))  # no dynamic shared memory
        self._driver.call("cuLaunchKernel", kernel, *sizes, self._handle, given, None)

    @abstractmethod
    def free_memory(self) -> int:
        """Return the number of bytes free on the device."""

    def close(self) -> None:
        """Wait for the stream, then free graphs, events, memory, the stream and the context.

        Never raises: what cannot be freed stays until the process ends. The context that was
        current when the device was opened becomes current again.
        """
        if self._closed:
            return
        # After a fault on the GPU every call fails. The first failed call has raised already, and
        # an error from here would only hide it.
        with suppress(Refused):
            self._driver.make_current(self._context)
        with suppress(Refused):
            if hasattr(self, "_handle"):  # missing when opening failed
                with suppress(Refused):  # fails where no capture is running, the usual case
                    self.discard(self.end_capture())
                self.synchronize()
        self._closed = True
        with suppress(Refused):
            self._free()
        with suppress(Refused):
            self._release()
        with suppress(Refused):
            mine = threading.get_ident() == self._thread
            self._driver.make_current(self._previous if mine else 0)

    def _use(self) -> None:
        """Make the context current in the calling thread."""
        if self._closed:
            raise BackendError("CUDA: this device was closed; open it again")
        self._driver.make_current(self._context)

    def _own(self, free: Callable[..., Any], *arguments: Any) -> None:
        self._owned.callback(free, *arguments)

    def _host_array(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], flags: int
    ) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Allocate an array; return it, and the bytes it lies in as the binding made them."""
        self._use()
        size = math.prod(shape) * dtype.itemsize
        try:
            whole = self._host_memory(max(size, 1), flags)
        except Refused as error:
            raise self._explain(error, size, " of page-locked memory") from None
        whole.fill(0)
        return whole[:size].view(dtype).reshape(shape), whole

    def _explain(self, error: Refused, size: int, kind: str) -> BackendError:
        if not error.out_of_memory:
            return error
        return BackendError(
            f"{error}: expected {size / _MB:.1f} MB{kind}, free on the device "
            f"{self.free_memory() / _MB:.1f} MB; close other programs or use a smaller --batch"
        )

    def _free(self) -> None:
        """Free all but the context; one failure does not stop the rest."""
        self._owned.close()

    @abstractmethod
    def _retain(self, index: int) -> int:
        """Retain the primary context and return its handle."""

    @abstractmethod
    def _release(self) -> None:
        """Undo ``_retain``, from any thread."""

    @abstractmethod
    def _make_stream(self) -> int:
        """Make the stream and return its handle."""

    @abstractmethod
    def _device_memory(self, size: int) -> int: ...

    @abstractmethod
    def _host_memory(self, size: int, flags: int) -> NDArray[np.uint8]:
        """Allocate page-locked memory (``CU_MEMHOSTALLOC_...``); return it as an array of bytes."""

    @abstractmethod
    def _device_address(self, memory: NDArray[np.uint8]) -> int:
        """Return the device's address of what ``_host_memory`` mapped."""

    @abstractmethod
    def _make_event(self, flags: int) -> Any: ...
