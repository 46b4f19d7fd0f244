"""What this machine tells of its power: rails of a Jetson, counters of a processor, its GPU.

All files are read below a root that tests replace. Nothing is estimated: what a machine does not
tell is absent. No Jetson and no GPU has run this; the layouts are from the sources named here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lgvit_edge.machine import nvml
from lgvit_edge.machine.container import ROOT, read_number, read_system_file

Read = Callable[[], float | None]

# Rails that feed all the others. VIN: forums.developer.nvidia.com/t/366461. VDD_IN, "the total
# power of module": /t/200883. POM_5V_IN, "the overall 5V input to the board": /t/73608/8. AGX
# Xavier and AGX Orin have none, and NVIDIA does not say which of their rails add up to the whole
# (/t/75574), so rails are never added.
_WHOLE = {
    "VIN": "the whole board, with all that hangs on it",
    "VDD_IN": "the whole module, not its carrier board",
    "POM_5V_IN": "the whole board, by its 5 V input",
}
_UNREADABLE = (
    "RAPL is here, but only root may read it (since Linux 5.10, CVE-2020-8694); to let everybody "
    "read it until the next start, run: sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj"
)
_NOTHING = "this machine tells no power"


@dataclass(frozen=True)
class Meter:
    """One part of this machine whose power (``watts``) or energy (``joules``) can be read.

    A reading is None while the machine does not answer.
    """

    name: str  # the rail, zone or GPU, as the machine calls it
    source: str  # such as ``INA3221``
    covers: str  # what is measured, in words
    watts: Read | None = None  # the power at this moment, which has to be sampled
    joules: Read | None = None  # a counter of the energy since some time in the past
    wraps_at: float | None = None  # joules at which the counter begins again at 0; None: unknown

    def spent(self, before: float | None, after: float | None) -> float | None:
        """Return the joules between two readings of the counter; None if unknown."""
        if before is None or after is None:
            return None
        if after < before:
            return None if self.wraps_at is None else after - before + self.wraps_at
        return after - before


def find_meters(root: Path = ROOT, *, gpu: int | None = 0) -> tuple[list[Meter], list[str]]:
    """Return the meters of this machine, the most telling first, and why others are missing.

    ``gpu`` is CUDA's number of the NVIDIA GPU, None for none.
    """
    rails = sorted(_rails(root), key=lambda meter: meter.name not in _WHOLE)
    zones, notes = _zones(root)
    meters = [*rails, *_gpu(gpu), *zones]
    return meters, notes if meters or notes else [_NOTHING]


def _rails(root: Path) -> Iterator[Meter]:
    """Yield the rails of a Jetson's power monitors.

    The driver's files: docs.kernel.org/hwmon/ina3221.html (mV and mA), and those of JetPack 4
    (mW): github.com/rbonghi/jetson_stats/issues/131. Channels that are not connected are called NC
    or cannot be read; in7 is the sum of shunt voltages and no rail.
    """
    drivers = root / "sys/bus/i2c/drivers"
    for folder in sorted(drivers.glob("ina3221*/*/hwmon/hwmon*")):
        for channel in "123":
            label = read_system_file(folder / f"in{channel}_label")
            files = folder / f"in{channel}_input", folder / f"curr{channel}_input"
            yield from _rail(label, "INA3221", partial(_product, *files))
    for folder in sorted(drivers.glob("ina3221x/*/iio:device*")):
        for channel in "012":
            label = read_system_file(folder / f"rail_name_{channel}")
            power = partial(read_number, folder / f"in_power{channel}_input", 1e-3)
            yield from _rail(label, "INA3221", power)
    # The monitor of Thor's input, in microwatts: github.com/rbonghi/jetson_stats/pull/900
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if read_system_file(folder / "name") == "ina238":
            label = read_system_file(folder / "in1_label")
            yield from _rail(label, "INA238", partial(read_number, folder / "power1_input", 1e-6))


def _rail(label: str, source: str, watts: Read) -> Iterator[Meter]:
    if label not in ("", "NC") and watts() is not None:
        yield Meter(label, source, _WHOLE.get(label, "one rail each, not the whole"), watts=watts)


def _zones(root: Path) -> tuple[list[Meter], list[str]]:
    """Return the energy counters of x86 processors.

    docs.kernel.org/power/powercap/powercap.html. A package holds its cores and its integrated
    graphics, not its memory (github.com/powercap/powercap/issues/3); AMD's have them too.
    """
    meters, unreadable = [], False
    folder = root / "sys/class/powercap"
    # intel-rapl-mmio:0 counts what intel-rapl:0 counts, by another way.
    for zone in sorted(folder.glob("intel-rapl:*")):
        parent, name = zone.name.rpartition(":")[0], read_system_file(zone / "name")
        if re.match(r"package-\d+", name):
            covers = "the processor: cores, caches, graphics; neither memory nor board"
        elif name == "dram":
            name = f"{read_system_file(folder / parent / 'name')} dram"
            covers = "the memory of this processor"
        elif name == "psys":
            covers = "the platform, as its maker wired it; it contains the package"
        else:
            continue  # core and uncore are parts of the package
        if read_number(zone / "energy_uj") is None:
            unreadable |= (zone / "energy_uj").exists()
            continue
        joules = partial(read_number, zone / "energy_uj", 1e-6)
        limit = read_number(zone / "max_energy_range_uj", 1e-6)
        meters.append(Meter(name, "RAPL", covers, joules=joules, wraps_at=limit))
    return meters, [_UNREADABLE] if unreadable else []


def _gpu(index: int | None) -> Iterator[Meter]:
    """Yield the GPU, if its driver tells its power; a Jetson's does not."""
    if (gpu := nvml.find_gpu(index)) is None:
        return
    covers = "the whole graphics card with its memory"
    if gpu.joules() is not None:
        yield Meter(gpu.name, "NVML", covers, joules=gpu.joules)
    elif gpu.watts() is not None:
        yield Meter(gpu.name, "NVML", covers, watts=gpu.watts)


def _product(millivolts: Path, milliamperes: Path) -> float | None:
    volts, amperes = read_number(millivolts, 1e-3), read_number(milliamperes, 1e-3)
    return None if volts is None or amperes is None else volts * amperes
