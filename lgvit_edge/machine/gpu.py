"""The NVIDIA GPUs of this machine, queried through the driver without CUDA toolkit or package."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

# CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, INTEGRATED, COMPUTE_CAPABILITY_MAJOR and _MINOR
_ATTRIBUTES = (16, 18, 75, 76)


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU as its driver describes it."""

    name: str  # such as ``NVIDIA GeForce RTX 4090``; every Orin is called ``Orin``
    multiprocessors: int  # their number, which differs between cards and boards of one name
    compute_capability: str  # such as ``8.7``
    driver: str  # newest CUDA version the driver supports, such as ``12.6``
    memory: int  # bytes in all
    integrated: bool  # whether it shares the CPU's memory, as on a Jetson


def find_gpus() -> list[Gpu]:
    """Return every GPU that this process may use."""
    gpus: list[Gpu] = []
    while gpu := find_gpu(len(gpus)):
        gpus.append(gpu)
    return gpus


def no_gpu(index: int) -> str:
    """Return an error's text: which GPU was asked for, which there are, and what to do."""
    found = ", ".join(f"cuda:{i} ({gpu.name})" for i, gpu in enumerate(find_gpus()))
    if found:
        return f"cuda:{index} was asked for, found {found}; name one that is there"
    return (
        f"cuda:{index} was asked for, found no NVIDIA GPU and driver; leave the device out, or "
        "run: lgvit-edge doctor"
    )


def find_gpu(index: int = 0) -> Gpu | None:
    """Return the GPU with this index; None without a driver or such a GPU."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, version, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name, numbers = ctypes.create_string_buffer(256), [ctypes.c_int() for _ in _ATTRIBUTES]
    if (
        cuda.cuInit(0)
        or cuda.cuDeviceGet(ctypes.byref(device), index)
        or cuda.cuDeviceGetName(name, len(name), device)
        or any(
            cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
            for number, attribute in zip(numbers, _ATTRIBUTES, strict=True)
        )
        or cuda.cuDriverGetVersion(ctypes.byref(version))
        or cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    ):
        return None
    multiprocessors, integrated, major, minor = (number.value for number in numbers)
    return Gpu(
        name=name.value.decode(errors="replace"),
        multiprocessors=multiprocessors,
        compute_capability=f"{major}.{minor}",
        driver=f"{version.value // 1000}.{version.value % 1000 // 10}",
        memory=memory.value,
        integrated=bool(integrated),
    )
