"""Clocks, temperatures and throttling of this machine at a moment.

All files are read below a root that tests replace. What the machine does not tell is absent. The
power mode of a Jetson is part of its description in ``jetson.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lgvit_edge.machine import nvml
from lgvit_edge.machine.container import ROOT, read_number, read_system_file
from lgvit_edge.machine.jetson import gpu_clocks


def clock_state(root: Path = ROOT, *, gpu: int | None = 0) -> dict[str, Any]:
    """Return clocks (MHz), temperatures (°C) and throttling as JSON, as far as they are told.

    ``cpu_mhz`` and ``gpu_mhz`` are the lowest and the highest clock of the cores, ``..._limit_mhz``
    the highest that is allowed. ``throttle_events`` counts since the machine was started;
    ``throttled`` names what holds clocks back right now. ``nvidia`` is the driver's account of the
    GPU that CUDA counts as ``gpu``.
    """
    cores = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*"))
    devices = gpu_clocks(root)
    told: dict[str, Any] = {
        "cpu_mhz": _range((core / "cpufreq/scaling_cur_freq" for core in cores), 1e-3),
        "cpu_limit_mhz": _highest((core / "cpufreq/scaling_max_freq" for core in cores), 1e-3),
        "gpu_mhz": _range((device / "cur_freq" for device in devices), 1e-6),
        "gpu_limit_mhz": _highest((device / "max_freq" for device in devices), 1e-6),
        "temperature_c": _temperatures(root),
        "throttle_events": _events(root, cores),
        "throttled": _alerts(root),
        "nvidia": found.state() if (found := nvml.find_gpu(gpu)) else None,
    }
    return {name: value for name, value in told.items() if value}


def throttling(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return what was throttled between two states of ``clock_state``, or still is."""
    then, now = (state.get("throttle_events", {}) for state in (before, after))
    rises = {name: count - then[name] for name, count in now.items() if name in then}
    held = [f"{name} {rise} times" for name, rise in rises.items() if rise > 0]
    held += after.get("throttled", [])
    return held + [f"GPU: {why}" for why in after.get("nvidia", {}).get("throttled", [])]


def _temperatures(root: Path) -> dict[str, float]:
    """Return the thermal zones by their type.

    Zones of a Jetson's units that are off cannot be read, or say -256 (prometheus/node_exporter
    issue 3071); PMIC of the old boards always says 100 (balena-os/balena-jetson issue 142).
    """
    told = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        name, celsius = read_system_file(zone / "type"), read_number(zone / "temp", 1e-3)
        if celsius is not None and -50 < celsius < 150 and not name.startswith("PMIC"):
            told[name] = round(celsius, 1)
    return told


def _events(root: Path, cores: list[Path]) -> dict[str, int]:
    """Return counts of throttling.

    Intel's: docs.kernel.org/admin-guide/thermal/intel_thermal_throttle.html; every core repeats the
    count of its package. Orin's and Thor's: under-voltage (oc1) and over-current (oc2, oc3), in
    NVIDIA's driver soctherm-oc-event.
    """
    counted: dict[str, list[float]] = {}
    for core in cores:
        for name in ("core", "package"):
            count = read_number(core / f"thermal_throttle/{name}_throttle_count")
            if count is not None:
                counted.setdefault(name, []).append(count)
    events = {}
    if "core" in counted:
        events["processor core"] = int(sum(counted["core"]))
    if "package" in counted:
        events["processor package"] = int(max(counted["package"]))
    for file in sorted((root / "sys/class/hwmon").glob("hwmon*/oc[0-9]_event_cnt")):
        count = read_number(file)
        if count is not None:
            events[file.name.removesuffix("_event_cnt")] = int(count)
    return events


def _alerts(root: Path) -> list[str]:
    """Return a Jetson's alerts that are on; its other cooling devices are fans and clocks."""
    devices = sorted((root / "sys/class/thermal").glob("cooling_device*"))
    names = {device: read_system_file(device / "type") for device in devices}
    return [n for d, n in names.items() if n.endswith("-alert") and read_number(d / "cur_state")]


def _range(files: Iterable[Path], unit: float) -> list[int]:
    values = [value for file in files if (value := read_number(file, unit)) is not None]
    return [round(min(values)), round(max(values))] if values else []


def _highest(files: Iterable[Path], unit: float) -> int | None:
    values = _range(files, unit)
    return values[1] if values else None
