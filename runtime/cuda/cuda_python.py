"""Implements the CUDA interface with NVIDIA's cuda-python, 12.x and 13.x."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.errors import BackendError
from lgvit_edge.machine.wheels import cuda_python
from lgvit_edge.runtime.cuda.api import NON_BLOCKING, Cuda
from lgvit_edge.runtime.cuda.driver import Driver, Refused

_NOT_READY = 600


class CudaPython(Cuda):
    """Implements ``Cuda`` with cuda-python."""

    name = "cuda-python"

    def __init__(self, driver: Driver, module: Any, index: int) -> None:
        """Open GPU ``index`` through ``module``, the binding's driver API; see ``open_cuda``."""
        self._module = module
        try:
            self._call("cuInit", 0)
        except RuntimeError as error:  # a function that the driver lacks shows at the first call
            found = driver.device(index).driver
            older = "" if found.startswith("11.") else f"pip install {cuda_python()}, or "
            raise BackendError(
                f"this cuda-python does not work with the driver ({error}); expected a driver for "
                f"CUDA 12.0 or newer, found {found}; update the driver, or run: "
                f"{older}pip install pycuda"
            ) from error
        super().__init__(driver, index)

    def upload(self, target: int, source: int, size: int) -> None:
        """See ``Cuda.upload``."""
        self._use()
        self._call("cuMemcpyHtoDAsync", target, source, size, self._stream)

    def download(self, target: int, source: int, size: int) -> None:
        """See ``Cuda.download``."""
        self._use()
        self._call("cuMemcpyDtoHAsync", target, source, size, self._stream)

    def move(self, target: int, source: int, size: int) -> None:
        """See ``Cuda.move``."""
        self._use()
        self._call("cuMemcpyDtoDAsync", target, source, size, self._stream)

    def record(self, event: int) -> None:
        """See ``Cuda.record``."""
        self._use()
        self._call("cuEventRecord", self._events[event], self._stream)

    def done(self, event: int) -> bool:
        """See ``Cuda.done``."""
        self._use()
        (status,) = self._ask("cuEventQuery", self._events[event])
        if status == _NOT_READY:
            return False
        self._check("cuEventQuery", status)
        return True

    def wait(self, event: int) -> None:
        """See ``Cuda.wait``."""
        self._use()
        self._call("cuEventSynchronize", self._events[event])

    def synchronize(self) -> None:
        """See ``Cuda.synchronize``."""
        self._use()
        self._call("cuStreamSynchronize", self._stream)

    def free_memory(self) -> int:
        """See ``Cuda.free_memory``."""
        self._use()
        free, _ = self._call("cuMemGetInfo")
        return int(free)

    def _retain(self, index: int) -> int:
        self._device = self._call("cuDeviceGet", index)
        return int(self._call("cuDevicePrimaryCtxRetain", self._device))

    def _release(self) -> None:
        self._call("cuDevicePrimaryCtxRelease", self._device)

    def _make_stream(self) -> int:
        self._stream = self._call("cuStreamCreate", NON_BLOCKING)
        self._own(self._call, "cuStreamDestroy", self._stream)
        return int(self._stream)

    def _device_memory(self, size: int) -> int:
        address = int(self._call("cuMemAlloc", size))
        self._own(self._call, "cuMemFree", address)
        return address

    def _host_memory(self, size: int, flags: int) -> NDArray[np.uint8]:
        address = int(self._call("cuMemHostAlloc", size, flags))
        self._own(self._call, "cuMemFreeHost", address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def _device_address(self, memory: NDArray[np.uint8]) -> int:
        return int(self._call("cuMemHostGetDevicePointer", memory.ctypes.data, 0))

    def _make_event(self, flags: int) -> Any:
        event = self._call("cuEventCreate", flags)
        self._own(self._call, "cuEventDestroy", event)
        return event

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call the driver and return its results without the status."""
        status, *results = self._ask(name, *arguments)
        self._check(name, status)
        return results[0] if len(results) == 1 else results

    def _ask(self, name: str, *arguments: Any) -> Any:
        try:
            return getattr(self._module, name)(*arguments)
        except ValueError as error:  # an error code of a newer driver, unknown to the binding
            raise Refused(name, str(error)) from None

    def _check(self, name: str, status: Any) -> None:
        if status != 0:
            raise self._driver.refused(name, int(status))
