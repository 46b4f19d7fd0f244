"""What both CUDA bindings share: calls of the driver's library, and freeing what was allocated."""

from __future__ import annotations

import ctypes
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lgvit_edge.errors import BackendError
from lgvit_edge.machine.gpu import Gpu, find_gpu

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: the default stream of other libraries is not waited for
THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may go on using CUDA
_BLOCKING_SYNC, _DISABLE_TIMING = 1, 2  # CU_EVENT_...
_OUT_OF_MEMORY = 2
_MB = 2**20


class Refused(BackendError):
    """A CUDA call failed."""

    def __init__(self, call: str, reason: str, *, out_of_memory: bool = False) -> None:
        super().__init__(f"CUDA: {call} failed: {reason}")
        self.out_of_memory = out_of_memory


class Driver:
    """Calls CUDA's driver library through ctypes: to describe GPUs, and for what pycuda lacks."""

    def __init__(self) -> None:
        """Load and start the driver.

        Raises:
            BackendError: there is no driver, or no GPU.
        """
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise BackendError(
                f"no CUDA driver here ({error}); install NVIDIA's driver, or on a Jetson JetPack, "
                "then run: lgvit-edge doctor"
            ) from None
        try:
            self.call("cuInit", 0)
        except Refused as error:
            raise BackendError(
                f"no CUDA GPU can be used here ({error}); run: lgvit-edge doctor"
            ) from None

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver; addresses and handles must be 64-bit ctypes objects.

        Raises:
            Refused: the result is an error.
        """
        code = getattr(self._library, name)(*arguments)
        if code:
            raise self.refused(name, code)

    def refused(self, name: str, code: int) -> Refused:
        """Return the error to raise when the call ``name`` returned ``code``."""
        texts = []
        for question in ("cuGetErrorName", "cuGetErrorString"):
            text = ctypes.c_char_p()
            getattr(self._library, question)(code, ctypes.byref(text))
            texts.append((text.value or b"unknown").decode())
        call = name.removesuffix("_v2").removesuffix("WithFlags")
        out_of_memory = code == _OUT_OF_MEMORY
        return Refused(call, f"{texts[0]} ({texts[1]}, {code})", out_of_memory=out_of_memory)

    def device(self, index: int) -> Gpu:
        """Return the description of a GPU.

        Raises:
            BackendError: there is no such GPU.
        """
        count = self._number("cuDeviceGetCount")
        if not 0 <= index < count:
            raise BackendError(f"CUDA device {index} was asked for, found {count} (from 0 on)")
        gpu = find_gpu(index)
        if gpu is None:
            raise BackendError(
                f"the driver does not describe CUDA device {index}; run: lgvit-edge doctor"
            )
        return gpu

    def handle(self, index: int) -> int:
        """Return the driver's handle of a GPU."""
        return self._number("cuDeviceGet", index)

    def current(self) -> int:
        """Return the handle of the context current in this thread; 0 for none."""
        context = ctypes.c_void_p()
        self.call("cuCtxGetCurrent", ctypes.byref(context))
        return context.value or 0

    def make_current(self, context: int) -> None:
        """Make a context current in this thread, replacing the present one."""
        self.call("cuCtxSetCurrent", ctypes.c_void_p(context))

    def _number(self, name: str, *arguments: Any) -> int:
        result = ctypes.c_int()
        self.call(name, ctypes.byref(result), *arguments)
        return result.value


class OwnedCuda(ABC):
    """The base of both bindings: it frees on ``close`` all that was allocated, newest first.

    A binding registers with ``_own`` how each object is freed. Every method starts with ``_use``.
    """

    stream: int

    def __init__(self, driver: Driver, index: int) -> None:
        self._driver = driver
        self.device = driver.device(index)
        self._owned = ExitStack()
        self._events: dict[int, Any] = {}
        self._previous = driver.current()
        self._thread = threading.get_ident()
        self._closed = False
        self._context = self._retain(index)
        try:
            self._use()
            self.stream = self._make_stream()
        except BaseException:
            self.close()
            raise

    def allocate(self, size: int) -> int:
        """See ``Cuda.allocate``."""
        self._use()
        try:
            return self._device_memory(max(size, 1))  # CUDA refuses to allocate nothing
        except Refused as error:
            raise self._explain(error, size, "") from None

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """See ``Cuda.pinned``."""
        self._use()
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        try:
            whole = self._host_memory(max(size, 1))
        except Refused as error:
            raise self._explain(error, size, " of page-locked memory") from None
        whole.fill(0)
        return whole[:size].view(kind).reshape(shape)

    def event(self, *, blocking: bool) -> int:
        """See ``Cuda.event``."""
        self._use()
        flags = _DISABLE_TIMING | (_BLOCKING_SYNC if blocking else 0)
        # Callers get a number and no reference, so that close decides when the event is destroyed.
        number = len(self._events)
        self._events[number] = self._make_event(flags)
        return number

    def close(self) -> None:
        """See ``Cuda.close``."""
        if self._closed:
            return
        # After a fault on the GPU every call fails. The first failed call has raised already, and
        # an error from here would only hide it.
        with suppress(Refused):
            self._driver.make_current(self._context)
        with suppress(Refused):
            if hasattr(self, "stream"):  # missing when opening failed
                with suppress(Refused):  # fails where no capture is running, the usual case
                    self.end_capture()
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
    def synchronize(self) -> None:
        """See ``Cuda.synchronize``."""

    @abstractmethod
    def end_capture(self) -> Any:
        """See ``Cuda.end_capture``."""

    @abstractmethod
    def free_memory(self) -> int:
        """See ``Cuda.free_memory``."""

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
    def _device_memory(self, size: int) -> int:
        """Allocate device memory and return its address."""

    @abstractmethod
    def _host_memory(self, size: int) -> NDArray[np.uint8]:
        """Allocate page-locked memory and return it as an array of bytes."""

    @abstractmethod
    def _make_event(self, flags: int) -> Any:
        """Make an event of the binding's own type."""
