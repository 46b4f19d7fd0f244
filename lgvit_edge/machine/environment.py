"""Description of the machine and software that a measurement was made on."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from lgvit_edge.machine import cpu, jetson
from lgvit_edge.machine.memory import memory_bytes

_FOR_TESTS = 'extra == "dev"'


def environment() -> dict[str, Any]:
    """Return machine, system and package versions as JSON, for comparing records."""
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


def device_of(runtime: dict[str, Any]) -> str:
    """Return, of what ``Session.describe`` tells, the device that times are measured on."""
    device = runtime["device"] if runtime["device"] != "cpu" else cpu.cpu_name()
    precision = runtime.get("precision", "fp32")
    lower = "" if precision == "fp32" else f" {precision}"
    return (
        f"{device}, {runtime['backend']} {runtime['version']}{lower}, {runtime['threads']} threads"
    )


def packages() -> dict[str, str]:
    """Return the installed versions of lgvit-edge and of the packages its extras require.

    Empty if lgvit-edge is only on the path and not installed, because its requirements are unknown.
    """
    try:
        requirements = requires("lgvit-edge") or []
    except PackageNotFoundError:
        return {}
    names = [re.split(r"[^\w.-]", text)[0] for text in requirements if _FOR_TESTS not in text]
    listed = dict.fromkeys(["lgvit-edge", *names])
    return {name: number for name in listed if (number := version_of(name)) is not None}


def version_of(distribution: str) -> str | None:
    """Return the installed version of a distribution; None if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
