"""What both CUDA bindings share: the driver's library through ctypes, and who owns what."""

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
    """A call that the driver refused."""

    def __init__(self, call: str, reason: str, *, out_of_memory: bool = False) -> None:
        super().__init__(f"CUDA: {call} failed: {reason}")
        self.out_of_memory = out_of_memory


class Driver:
    """The driver's library: the questions before a binding is chosen, and what pycuda lacks."""

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
        """Call the driver. Addresses and handles must come as ctypes objects of 64 bits.

        Raises:
            Refused: the result is an error.
        """
        code = getattr(self._library, name)(*arguments)
        if code:
            raise self.refused(name, code)

    def refused(self, name: str, code: int) -> Refused:
        """The error to raise for a result of the call ``name``."""
        texts = []
        for question in ("cuGetErrorName", "cuGetErrorString"):
            text = ctypes.c_char_p()
            getattr(self._library, question)(code, ctypes.byref(text))
            texts.append((text.value or b"unknown").decode())
        call = name.removesuffix("_v2").removesuffix("WithFlags")
        out_of_memory = code == _OUT_OF_MEMORY
        return Refused(call, f"{texts[0]} ({texts[1]}, {code})", out_of_memory=out_of_memory)

    def device(self, index: int) -> Gpu:
        """Describe a GPU.

        Raises:
            BackendError: there is no such GPU.
        """
        found = self._number("cuDeviceGetCount")
        if not 0 <= index < found:
            raise BackendError(f"CUDA device {index} was asked for, found {found} (from 0 on)")
        gpu = find_gpu(index)
        if gpu is None:
            raise BackendError(
                f"the driver does not describe CUDA device {index}; run: lgvit-edge doctor"
            )
        return gpu

    def handle(self, index: int) -> int:
        """The driver's own number for a GPU."""
        return self._number("cuDeviceGet", index)

    def current(self) -> int:
        """Handle of the context that is current in this thread; 0 for none."""
        context = ctypes.c_void_p()
        self.call("cuCtxGetCurrent", ctypes.byref(context))
        return context.value or 0

    def make_current(self, context: int) -> None:
        """Make a context current in this thread, instead of the one that is."""
        self.call("cuCtxSetCurrent", ctypes.c_void_p(context))

    def _number(self, name: str, *arguments: Any) -> int:
        result = ctypes.c_int()
        self.call(name, ctypes.byref(result), *arguments)
        return result.value


class OwnedCuda(ABC):
    """The part of ``Cuda`` that keeps count: what was made is freed by ``close``, newest first.

    A binding makes things and says with ``_own`` how each is freed. ``_use`` comes first in every
    method.
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
        event = self._make_event(flags)
        # Kept here and handed out by number, so that close decides when it goes.
        number = len(self._events)
        self._events[number] = event
        return number

    def close(self) -> None:
        """See ``Cuda.close``."""
        if self._closed:
            return
        # After a fault on the GPU every call fails. The call that met it has said so; freeing goes
        # on, since a second error from here would only hide the first.
        with suppress(Refused):
            self._driver.make_current(self._context)
        with suppress(Refused):
            if hasattr(self, "stream"):  # it is not there when opening failed
                with suppress(Refused):  # there is seldom a capture to end, and it must not go on
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
        """Retain the primary context; its handle."""

    @abstractmethod
    def _release(self) -> None:
        """Undo ``_retain``, from whatever thread."""

    @abstractmethod
    def _make_stream(self) -> int:
        """Make the stream; its handle."""

    @abstractmethod
    def _device_memory(self, size: int) -> int:
        """Device memory; its address."""

    @abstractmethod
    def _host_memory(self, size: int) -> NDArray[np.uint8]:
        """Page-locked memory as an array of bytes."""

    @abstractmethod
    def _make_event(self, flags: int) -> Any:
        """An event as the binding has it."""
