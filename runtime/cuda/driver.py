"""Calls of CUDA's driver library, which both bindings share."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lgvit_edge.errors import BackendError
from lgvit_edge.machine.gpu import Gpu, find_gpu, no_gpu

_OUT_OF_MEMORY = 2
# Handles of primary contexts that ``on_gpu`` retained, by GPU.
_retained: dict[int, int] = {}


@contextmanager
def on_gpu(index: int) -> Iterator[None]:
    """Make a GPU the current one of this thread, as ``cudaSetDevice`` does, if it is there.

    TensorRT's builders and runtimes belong to the GPU that is current when they are made, and want
    it to be current whenever they are called (TensorRT Developer Guide, "How do I use TensorRT on
    multiple GPUs?"). Like CUDA's own runtime this keeps the GPU's primary context until the process
    ends: an object may live longer than the block, as in the traceback of an error.
    """
    if find_gpu(index) is None:
        yield
        return
    driver = Driver()
    before = driver.current()
    if index not in _retained:
        context = ctypes.c_void_p()
        driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), driver.handle(index))
        _retained[index] = context.value or 0
    driver.make_current(_retained[index])
    try:
        yield
    finally:
        driver.make_current(before)


class Refused(BackendError):
    """A CUDA call failed."""

    def __init__(self, call: str, reason: str, *, out_of_memory: bool = False) -> None:
        super().__init__(f"CUDA: {call} failed: {reason}")
        self.out_of_memory = out_of_memory


class Driver:
    """Calls CUDA's driver library through ctypes: to describe GPUs, and for CUDA graphs."""

    def __init__(self) -> None:
        """Load and start the driver; BackendError where there is none, or no GPU."""
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
        if not 0 <= index < self._number("cuDeviceGetCount"):
            raise BackendError(no_gpu(index))
        if (gpu := find_gpu(index)) is not None:
            return gpu
        raise BackendError(
            f"the driver does not describe CUDA device {index}; run: lgvit-edge doctor"
        )

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
