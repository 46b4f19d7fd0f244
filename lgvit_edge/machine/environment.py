"""Where a measurement was made: what a record must say to be compared with another."""

from __future__ import annotations

import os
import platform
import re
import resource
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from lgvit_edge.machine import jetson
from lgvit_edge.machine.cpu import available_cores


def environment() -> dict[str, Any]:
    """Machine, system and versions, as JSON."""
    found: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": available_cores(),
        "memory_gb": round(_memory_bytes() / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": installed_packages(),
        "load_average": load_average(),
        "running": running_processes(),
    }
    governor = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    board = jetson.detect()
    device: dict[str, Any] = {}
    if board is not None:
        device = {
            "model": board.model,
            "l4t": board.l4t,
            "power_mode": board.power_mode,
            "clocks_locked": board.clocks_locked,
        }
    return (
        found
        | ({"cpu_governor": governor} if governor else {})
        | ({"jetson": device} if device else {})
    )


def installed_packages() -> dict[str, str]:
    """Versions of lgvit-edge and of all it can make use of, as its own metadata names them."""
    try:
        listed = requires("lgvit-edge") or []
    except PackageNotFoundError:  # run from a folder, never installed
        listed = []
    used = [text for text in listed if not re.search(r"extra == .dev.", text)]
    names = dict.fromkeys(["lgvit-edge", *(re.split(r"[^\w.-]", text)[0] for text in used)])
    return {name: found for name in names if (found := version_of(name)) is not None}


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution; None where there is none."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor's own name where the system tells it."""
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        if line.startswith(("model name", "Model", "Hardware")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def load_average() -> float:
    """Runnable processes over the last minute."""
    return round(os.getloadavg()[0], 2)


def running_processes() -> int:
    """Processes running right now, this one apart; 0 where the system does not tell."""
    fields = (_read("/proc/loadavg") or "0 0 0 1/1").split()
    return max(0, int(fields[3].partition("/")[0]) - 1)


def peak_memory_mb() -> float:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None
