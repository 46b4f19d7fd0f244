"""The NVIDIA GPUs of this machine, queried through the driver without CUDA toolkit or package."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from lgvit_edge.machine.jetson import detect

# CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR
_ATTRIBUTES = (16, 75, 76)


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU as its driver describes it.

    Attributes:
        name: the driver's name; on a Jetson the board's, because the driver calls every Orin
            "Orin".
        multiprocessors: their number, which differs between cards and boards of one name.
        compute_capability: such as ``8.7``.
        driver: newest CUDA version the driver supports, such as ``12.6``.
        memory: bytes in all.
    """

    name: str
    multiprocessors: int
    compute_capability: str
    driver: str
    memory: int


def find_gpus() -> list[Gpu]:
    """Return every GPU that this process may use."""
    gpus: list[Gpu] = []
    while gpu := find_gpu(len(gpus)):
        gpus.append(gpu)
    return gpus


def find_gpu(index: int = 0) -> Gpu | None:
    """Return the GPU with this index; None without a driver or such a GPU."""
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
    numbers = []
    for attribute in _ATTRIBUTES:
        if cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device):
            return None
        numbers.append(number.value)
    multiprocessors, major, minor = numbers
    memory = ctypes.c_size_t()
    if cuda.cuDriverGetVersion(ctypes.byref(number)):
        return None
    if cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device):
        return None
    driver = f"{number.value // 1000}.{number.value % 1000 // 10}"
    board = detect()
    return Gpu(
        name=(board and board.model) or name.value.decode(errors="replace"),
        multiprocessors=multiprocessors,
        compute_capability=f"{major}.{minor}",
        driver=driver,
        memory=memory.value,
    )
