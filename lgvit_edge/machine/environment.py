"""Where a measurement was made: what a record must say to be compared with another."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from lgvit_edge.machine import cpu, jetson
from lgvit_edge.machine.memory import memory_bytes

_FOR_TESTS = 'extra == "dev"'


def environment() -> dict[str, Any]:
    """Machine, system and versions, as JSON."""
    described: dict[str, Any] = {
        "cpu": cpu.cpu_name(),
        "cores": cpu.available_cores(),
        "memory_gb": round(memory_bytes() / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": packages(),
        "load_average": cpu.load_average(),
        "running": cpu.running_processes(),
    }
    if governor := cpu.cpu_governor():
        described["cpu_governor"] = governor
    if board := jetson.detect():
        described["jetson"] = {
            "model": board.model,
            "l4t": board.l4t,
            "power_mode": board.power_mode,
            "clocks_locked": board.clocks_locked,
        }
    return described


def packages() -> dict[str, str]:
    """Versions of lgvit-edge and of all that any of its extras asks for, where installed.

    Empty where lgvit-edge is only found on the path, and so says nothing of what it asks for.
    """
    try:
        requirements = requires("lgvit-edge") or []
    except PackageNotFoundError:
        return {}
    names = [re.split(r"[^\w.-]", text)[0] for text in requirements if _FOR_TESTS not in text]
    listed = dict.fromkeys(["lgvit-edge", *names])
    return {name: found for name in listed if (found := version_of(name)) is not None}


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution; None where there is none."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
