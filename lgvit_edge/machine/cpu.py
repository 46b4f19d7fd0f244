"""The processor: its name, how much of it this process may use, and what else runs on it."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

from lgvit_edge.machine.container import ROOT, cpu_quota


def available_cores(root: Path = ROOT) -> int:
    """Cores' worth of time that this process may use: where it may run, and a container's quota.

    A quota is rounded up: two threads use 1.5 cores better than one does.

    Args:
        root: where the system's files lie, for tests.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = cpu_quota(root)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cpu_name(root: Path = ROOT) -> str:
    """The processor's own name where the system tells it."""
    for line in _read(root / "proc/cpuinfo").splitlines():
        if line.startswith(("model name", "Model", "Hardware")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_governor(root: Path = ROOT) -> str | None:
    """What sets the processor's clock, such as ``powersave``, where the system tells it."""
    return _read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or None


def load_average() -> float:
    """Runnable processes over the last minute."""
    return round(os.getloadavg()[0], 2)


def running_processes() -> int:
    """Processes running right now, this one apart; 0 where the system does not tell."""
    fields = (_read(ROOT / "proc/loadavg") or "0 0 0 1/1").split()
    return max(0, int(fields[3].partition("/")[0]) - 1)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
