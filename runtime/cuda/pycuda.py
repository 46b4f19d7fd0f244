"""Implements the CUDA interface with pycuda."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.runtime.cuda.api import NON_BLOCKING, Cuda
from lgvit_edge.runtime.cuda.driver import Driver, Refused


class PyCuda(Cuda):
    """Implements ``Cuda`` with pycuda."""

    name = "pycuda"

    def __init__(self, driver: Driver, module: Any, index: int) -> None:
        """Open GPU ``index`` through ``module``, the binding's driver API; see ``open_cuda``."""
        self._module = module
        self._call(module.init)
        super().__init__(driver, index)

    def upload(self, target: int, source: int, size: int) -> None:
        """See ``Cuda.upload``."""
        self._use()
        self._call(self._module.memcpy_htod_async, target, _buffer(source, size), self._stream)

    def download(self, target: int, source: int, size: int) -> None:
        """See ``Cuda.download``."""
        self._use()
        self._call(self._module.memcpy_dtoh_async, _buffer(target, size), source, self._stream)

    def move(self, target: int, source: int, size: int) -> None:
        """See ``Cuda.move``."""
        self._use()
        self._call(self._module.memcpy_dtod_async, target, source, size, self._stream)

    def record(self, event: int) -> None:
        """See ``Cuda.record``."""
        self._use()
        self._call(self._events[event].record, self._stream)

    def done(self, event: int) -> bool:
        """See ``Cuda.done``."""
        self._use()
        return bool(self._call(self._events[event].query))

    def wait(self, event: int) -> None:
        """See ``Cuda.wait``."""
        self._use()
        self._call(self._events[event].synchronize)

    def synchronize(self) -> None:
        """See ``Cuda.synchronize``."""
        self._use()
        self._call(self._stream.synchronize)

    def free_memory(self) -> int:
        """See ``Cuda.free_memory``."""
        self._use()
        return int(self._call(self._module.mem_get_info)[0])

    def _retain(self, index: int) -> int:
        self._device = self._driver.handle(index)
        self._primary = self._call(self._module.Device(index).retain_primary_context)
        return int(self._primary.handle)

    def _release(self) -> None:
        # In the thread that retained it, pycuda releases the context but leaves it current; in
        # another thread it only drops its reference.
        self._primary.detach()
        if threading.get_ident() == self._thread:
            self._driver.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
        else:
            self._driver.call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _free(self) -> None:
        with self._on_stack():
            super()._free()

    def _make_stream(self) -> int:
        with self._on_stack():
            self._stream = self._call(self._module.Stream, NON_BLOCKING)
        self._own(setattr, self, "_stream", None)  # pycuda destroys it with the last reference
        return int(self._stream.handle)

    def _device_memory(self, size: int) -> int:
        with self._on_stack():
            memory = self._call(self._module.mem_alloc, size)
        self._own(self._call, memory.free)
        return int(memory)

    def _host_memory(self, size: int, flags: int) -> NDArray[np.uint8]:
        allocate = self._module.pagelocked_empty
        with self._on_stack():
            array: NDArray[np.uint8] = self._call(allocate, size, np.uint8, "C", flags)
        # Freed by close, not with the last reference: page-locked memory is scarce.
        self._own(self._call, array.base.free)  # type: ignore[union-attr]
        return array

    def _device_address(self, memory: NDArray[np.uint8]) -> int:
        with self._on_stack():
            return int(self._call(memory.base.get_device_pointer))  # type: ignore[union-attr]

    def _make_event(self, flags: int) -> Any:
        with self._on_stack():
            event = self._call(self._module.Event, flags)
        self._own(self._events.clear)
        return event

    @contextmanager
    def _on_stack(self) -> Iterator[None]:
        """Put the context on pycuda's own stack, which it needs to allocate and free."""
        self._call(self._primary.push)
        try:
            yield
        finally:
            self._call(self._primary.pop)
            self._driver.make_current(self._context)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._module.Error as error:  # its text is "cuMemAlloc failed: out of memory"
            # The error's traceback holds this frame, and close needs the last reference.
            del function, arguments
            call, _, reason = str(error).partition(" failed: ")
            if not isinstance(error, self._module.MemoryError):
                raise Refused(call, reason) from None
            reason = f"CUDA_ERROR_OUT_OF_MEMORY ({reason})"
            raise Refused(call, reason, out_of_memory=True) from None


def _buffer(address: int, size: int) -> Any:
    """Return host memory in the form pycuda takes."""
    return (ctypes.c_char * size).from_address(address)
