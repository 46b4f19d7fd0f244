"""Calls of CUDA's driver library, which both bindings share."""

from __future__ import annotations

import ctypes
from typing import Any

from lgvit_edge.errors import BackendError
from lgvit_edge.machine.gpu import Gpu, find_gpu

_OUT_OF_MEMORY = 2


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
        count = self._number("cuDeviceGetCount")
        if not 0 <= index < count:
            raise BackendError(f"CUDA device {index} was asked for, found {count} (from 0 on)")
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
