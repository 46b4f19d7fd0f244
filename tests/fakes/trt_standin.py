"""A TensorRT that runs on host memory, shaped by NVIDIA's own bindings.

It builds "engines" that name their ONNX file, and executes them through ONNX Runtime on the stream
of the stand-in CUDA driver, at the addresses the chain bound. Everything it offers is ``Checked``
against the bindings it was made from, and it refuses what TensorRT refuses: unbound tensors,
missing or misaligned scratch memory, shapes outside the profile, the default stream, and another
GPU current than the one an object was made on.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import fake_cuda
from nvidia_api import Checked, check_call
from trt_builder import Builder, OnnxParser
from trt_runtime import Runtime

MADE = {"Builder": Builder, "OnnxParser": OnnxParser, "Runtime": Runtime}


class StandIn(ModuleType):
    """Use ``install``."""

    def __init__(self, real: Any, name: str, version: str) -> None:
        super().__init__(name)
        self.real = real
        self.__version__ = version
        self.cuda = fake_cuda.load()
        self.refuse_execution = ""  # the ONNX file's stem whose execution returns False
        self.refuse_building = ""
        self.capturable = True
        self.silently_float32 = False
        self.fused = False  # the engine is one layer, and the inspector tells no inner tensors
        self.inner: list[str] = []  # instead: the inner tensors that it tells
        self.slow_half = False
        self.dies = 0  # the signal that ends the process that builds
        self.builds_for = 0.0  # seconds
        self.off_by = 0.0  # added to every output
        self.nan_from: int | None = None  # the row from which outputs are NaN
        self.does_not_start = False
        self.built: list[str] = []
        self.devices: set[int] = set()  # where objects were made
        self.unsupported = False  # this GPU, by RTX's own word
        self.reports_layers = self.describes_layers = True
        self.calls: list[str] = []
        self.collecting: list[bool] = []  # whether the garbage collector was on, at each call
        self.callbacks: list[Any] = []  # kept alive for the driver

    def __getattr__(self, name: str) -> Any:
        if name in MADE:
            real, made = getattr(self.real, name), MADE[name]

            def construct(*arguments: Any) -> Checked:
                if self.does_not_start and name != "OnnxParser":
                    arguments[0].log(self.ILogger.ERROR, "CUDA initialization failure")
                    raise TypeError("pybind11::init(): factory function returned nullptr")
                check_call(real.__init__, arguments, {})
                self.devices.add(self.cuda.fake_current())
                return Checked(real, made(self, *arguments))

            return construct
        return getattr(self.real, name)

    def stay(self, device: int) -> None:
        """Refuse to work for an object of another device than the current one."""
        found = self.cuda.fake_current()
        assert found == device, f"an object of cuda:{device}, while cuda:{found} is current"

    def checked(self, name: str, made: Any) -> Checked:
        return Checked(getattr(self.real, name), made)


def install(real: Any, name: str, version: str) -> StandIn:
    """Make ``import name`` give a stand-in for this real module."""
    made = StandIn(real, name, version)
    sys.modules[name] = made
    return made
