"""The processor: its name, the cores available to this process, and its load."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

from lgvit_edge.machine.container import ROOT, cpu_quota, read_system_file

# Of x86, then of Arm, as Linux spells them.
_ROUNDING = (
    *("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "avx_ne_convert"),
    *("amx_bf16", "amx_fp16", "asimdhp", "asimdfhm", "sve", "sve2", "bf16", "svebf16", "sme"),
)
# Cores of boards and servers, by the numbers of their makers (0x41 Arm, 0x4e NVIDIA) and their own.
_ARM_CORES = {
    ("0x41", "0xd03"): "Arm Cortex-A53",
    ("0x41", "0xd05"): "Arm Cortex-A55",
    ("0x41", "0xd07"): "Arm Cortex-A57",
    ("0x41", "0xd08"): "Arm Cortex-A72",
    ("0x41", "0xd0b"): "Arm Cortex-A76",
    ("0x41", "0xd0c"): "Arm Neoverse-N1",
    ("0x41", "0xd40"): "Arm Neoverse-V1",
    ("0x41", "0xd41"): "Arm Cortex-A78",
    ("0x41", "0xd42"): "Arm Cortex-A78AE",  # Jetson Orin
    ("0x41", "0xd49"): "Arm Neoverse-N2",
    ("0x41", "0xd4f"): "Arm Neoverse-V2",
    ("0x41", "0xd83"): "Arm Neoverse-V3AE",  # Jetson Thor
    ("0x41", "0xd84"): "Arm Neoverse-V3",
    ("0x4e", "0x004"): "NVIDIA Carmel",  # Jetson Xavier
}


def available_cores(root: Path = ROOT) -> int:
    """Return how many cores this process may use, by its affinity and its container's quota.

    The quota is rounded up, because two threads use 1.5 cores better than one thread does.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = cpu_quota(root)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cpu_name(root: Path = ROOT) -> str:
    """Return the processor's name, or its architecture if the system does not tell the name.

    Of an Arm processor it is the board's, or that of the cores: ``Arm Cortex-A78AE``.
    """
    lines = read_system_file(root / "proc/cpuinfo").splitlines()
    told = [
        (key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)
    ]
    for key, value in told:
        # "ARMv8 Processor rev 1 (v8l)" is any of them.
        if key in ("model name", "Model", "Hardware") and not value.startswith(("ARMv", "AArch64")):
            return value
    makers = [value for key, value in told if key == "CPU implementer"]
    parts = [value for key, value in told if key == "CPU part"]
    cores = dict.fromkeys(_arm_core(*core) for core in zip(makers, parts, strict=False))
    return " and ".join(cores) or platform.processor() or platform.machine()


def _arm_core(maker: str, part: str) -> str:
    return _ARM_CORES.get((maker, part), f"Arm core {part} of maker {maker}")


def instructions(root: Path = ROOT) -> tuple[str, ...]:
    """Return those of the processor's instructions that decide how products are rounded.

    Virtual machines name different processors alike; these tell them apart.
    """
    for line in read_system_file(root / "proc/cpuinfo").splitlines():
        if line.startswith(("flags", "Features")):
            return tuple(flag for flag in _ROUNDING if flag in line.split())
    return ()


def cpu_governor(root: Path = ROOT) -> str | None:
    """Return the governor of the processor's clock, such as ``powersave``; None if unknown."""
    return read_system_file(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None


def load_average() -> float:
    """Return the mean number of runnable processes over the last minute."""
    return round(os.getloadavg()[0], 2)


def running_processes() -> int:
    """Return how many other processes run right now; 0 if unknown."""
    fields = (read_system_file(ROOT / "proc/loadavg") or "0 0 0 1/1").split()
    return max(0, int(fields[3].partition("/")[0]) - 1)
