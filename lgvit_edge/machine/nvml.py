"""The NVIDIA driver's own figures of a GPU: energy, clocks, temperature, throttling.

They come from ``libnvidia-ml.so.1``, which is part of the driver, without a package. What it does
not support is None: on a Jetson the library answers, but supports none of this
(github.com/HazyResearch/intelligence-per-watt/issues/40). Names and units: ``nvml.h``, and
docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

_SM, _MEMORY = 1, 2  # nvmlClockType_t
_DIE = 0  # nvmlTemperatureSensors_t
# nvmlClocksEventReason*: those that hold clocks back. Being idle, and clocks that somebody set,
# are left out.
_REASONS = {
    0x04: "power limit",
    0x08: "hardware slowdown",
    0x20: "temperature (software)",
    0x40: "temperature (hardware)",
    0x80: "power brake",
}


@dataclass(frozen=True)
class NvidiaGpu:
    """A GPU as NVML knows it."""

    name: str
    _library: Any
    _device: ctypes.c_void_p

    def joules(self) -> float | None:
        """Return the energy since the driver was loaded; Volta and newer tell."""
        return _scaled(self._ask(ctypes.c_ulonglong, "nvmlDeviceGetTotalEnergyConsumption"), 1e-3)

    def watts(self) -> float | None:
        """Return the card's power at this moment: from Ampere on, the mean of a second."""
        return _scaled(self._ask(ctypes.c_uint, "nvmlDeviceGetPowerUsage"), 1e-3)

    def state(self) -> dict[str, Any]:
        """Return clocks, limits, temperature and what holds the clocks back, as far as told."""
        number = ctypes.c_uint
        told = {
            "sm_mhz": self._ask(number, "nvmlDeviceGetClockInfo", _SM),
            "sm_limit_mhz": self._ask(number, "nvmlDeviceGetMaxClockInfo", _SM),
            "memory_mhz": self._ask(number, "nvmlDeviceGetClockInfo", _MEMORY),
            "power_limit_w": _scaled(self._ask(number, "nvmlDeviceGetEnforcedPowerLimit"), 1e-3),
            "temperature_c": self._ask(number, "nvmlDeviceGetTemperature", _DIE),
        }
        reasons = self._ask(ctypes.c_ulonglong, "nvmlDeviceGetCurrentClocksThrottleReasons")
        if reasons is not None:
            told["throttled"] = [text for bit, text in _REASONS.items() if reasons & bit]
        return {name: value for name, value in told.items() if value is not None}

    def _ask(self, kind: Any, function: str, *which: int) -> Any:
        """Return the answer of a function; None if the driver does not have or support it."""
        value = kind()
        try:
            failed = getattr(self._library, function)(self._device, *which, ctypes.byref(value))
        except AttributeError:
            return None
        return None if failed else value.value


@cache
def find_gpu(index: int | None = 0) -> NvidiaGpu | None:
    """Return the GPU that CUDA counts as ``index``; None without one, without NVML, or for None.

    CUDA and NVML count GPUs in different orders, and ``CUDA_VISIBLE_DEVICES`` hides some from CUDA
    alone, so it is found by its place on the bus.
    """
    if index is None:
        return None
    device, name = ctypes.c_void_p(), ctypes.create_string_buffer(96)
    try:
        library, bus = ctypes.CDLL("libnvidia-ml.so.1"), _on_bus(index)
        if (
            bus is None
            or library.nvmlInit_v2()
            or library.nvmlDeviceGetHandleByPciBusId_v2(bus, ctypes.byref(device))
            or library.nvmlDeviceGetName(device, name, ctypes.c_uint(len(name)))
        ):
            return None
    except (OSError, AttributeError):
        return None
    return NvidiaGpu(name.value.decode(errors="replace"), library, device)


def _on_bus(index: int) -> bytes | None:
    """Return the bus address of one of CUDA's GPUs, such as ``00000000:01:00.0``."""
    cuda = ctypes.CDLL("libcuda.so.1")
    device, bus = ctypes.c_int(), ctypes.create_string_buffer(32)
    if (
        cuda.cuInit(0)
        or cuda.cuDeviceGet(ctypes.byref(device), index)
        or cuda.cuDeviceGetPCIBusId(bus, len(bus), device)
    ):
        return None
    return bus.value


def _scaled(value: int | None, unit: float) -> float | None:
    return None if value is None else value * unit
