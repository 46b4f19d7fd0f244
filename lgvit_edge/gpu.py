"""The NVIDIA GPU of this machine, asked through its driver: no CUDA toolkit, no package."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: as the driver gives it.
        compute_capability: such as ``8.7``.
        driver: newest CUDA version the driver supports, such as ``12.6``.
    """

    name: str
    compute_capability: str
    driver: str


def find_gpu(index: int = 0) -> Gpu | None:
    """The GPU ``index``, or None where there is no driver or no such GPU."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, number = ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), index):
        return None
    if cuda.cuDeviceGetName(name, len(name), device):
        return None
    capability = []
    for attribute in (_MAJOR, _MINOR):
        if cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device):
            return None
        capability.append(str(number.value))
    if cuda.cuDriverGetVersion(ctypes.byref(number)):
        return None
    driver = f"{number.value // 1000}.{number.value % 1000 // 10}"
    return Gpu(name.value.decode(errors="replace"), ".".join(capability), driver)
