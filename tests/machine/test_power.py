"""Power, clocks and heat of machines that are not at hand: trees of faked files, stand-ins."""

from __future__ import annotations

import io
import json
import os
import threading
from pathlib import Path
from typing import Any

import fake_cuda
import pytest
from rich.console import Console

from lgvit_edge.cli.doctor import print_examination
from lgvit_edge.machine import nvml
from lgvit_edge.machine.clocks import clock_state, throttling
from lgvit_edge.machine.container import read_number, read_system_file
from lgvit_edge.machine.power import Meter, find_meters
from lgvit_edge.runtime.examination import examine

INA = "sys/bus/i2c/drivers/ina3221"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def chip(folder: str, rails: dict[int, tuple[str, int, int]]) -> dict[str, str]:
    """The files of the kernel's ina3221 (docs.kernel.org/hwmon/ina3221.html), by channel."""
    files = {f"{folder}/name": "ina3221", f"{folder}/in7_label": "sum of shunt voltages"}
    files |= {f"{folder}/in7_input": "40", f"{folder}/curr4_input": "9999"}
    for channel, (label, millivolts, milliamperes) in rails.items():
        files[f"{folder}/in{channel}_label"] = label
        files[f"{folder}/in{channel}_input"] = str(millivolts)
        files[f"{folder}/curr{channel}_input"] = str(milliamperes)
    return files


# Rails, addresses and figures: NVIDIA's developer guide (r35.6, r36.3: "Jetson Orin Nano Series,
# Jetson Orin NX Series and Jetson AGX Orin Series"), tegra234-p3701.dtsi and tegra234-p3767.dtsi of
# Linux, github.com/justincdavis/fastnvmetrics (docs/adding_a_board.md: an AGX Orin on JetPack 6),
# rbonghi/jetson_stats issue 428 (one on JetPack 5, with NC), github.com/energymon/energymon
# (jetson/JetsonPowerRails.md: Xavier, Nano), rbonghi/jetson_stats issue 131 (the Nano's files).
AGX_ORIN_5 = chip(
    f"{INA}/1-0040/hwmon/hwmon3",
    {
        1: ("VDD_GPU_SOC", 19000, 210),
        2: ("VDD_CPU_CV", 19000, 48),
        3: ("VIN_SYS_5V0", 4968, 953),
    },
) | chip(
    f"{INA}/1-0041/hwmon/hwmon4",
    {1: ("NC", 0, 0), 2: ("VDDQ_VDD2_1V8AO", 4968, 341), 3: ("NC", 0, 0)},
)
# On JetPack 6 channels that are not connected have no label.
AGX_ORIN_6 = {name: text for name, text in AGX_ORIN_5.items() if text != "NC"}
ORIN_NANO = chip(
    f"{INA}/1-0040/hwmon/hwmon1",
    {
        1: ("VDD_IN", 4984, 1856),
        2: ("VDD_CPU_GPU_CV", 4976, 520),
        3: ("VDD_SOC", 4976, 304),
    },
)
AGX_XAVIER = chip(
    f"{INA}/1-0040/hwmon/hwmon3",
    {1: ("GPU", 19000, 20), 2: ("CPU", 19000, 40), 3: ("SOC", 19000, 60)},
) | chip(
    f"{INA}/1-0041/hwmon/hwmon4",
    {1: ("CV", 19000, 0), 2: ("VDDRQ", 19000, 25), 3: ("SYS5V", 4960, 400)},
)
NANO_FILES = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
NANO = {
    f"{NANO_FILES}/{name}_{rail}{end}": text
    for rail, label, power in ((0, "POM_5V_IN", 2311), (1, "POM_5V_GPU", 40), (2, "POM_5V_CPU", 80))
    for name, end, text in (("rail_name", "", label), ("in_power", "_input", str(power)))
}
NANO = {name.replace("in_power_", "in_power"): text for name, text in NANO.items()}
# rbonghi/jetson_stats pull request 900: the monitor of Thor's input, in microwatts.
THOR = chip(f"{INA}/1-0040/hwmon/hwmon4", {1: ("VDD_GPU", 16000, -24)}) | {
    "sys/class/hwmon/hwmon6/name": "ina238",
    "sys/class/hwmon/hwmon6/in1_label": "VIN",
    "sys/class/hwmon/hwmon6/power1_input": "23000000",
}


@pytest.mark.parametrize(
    ("files", "watts"),
    [
        (
            AGX_ORIN_5,
            {
                "VDD_GPU_SOC": 3.99,
                "VDD_CPU_CV": 0.912,
                "VIN_SYS_5V0": 4.7345,
                "VDDQ_VDD2_1V8AO": 1.694088,
            },
        ),
        (
            AGX_ORIN_6,
            {
                "VDD_GPU_SOC": 3.99,
                "VDD_CPU_CV": 0.912,
                "VIN_SYS_5V0": 4.7345,
                "VDDQ_VDD2_1V8AO": 1.694088,
            },
        ),
        (ORIN_NANO, {"VDD_IN": 9.2503, "VDD_CPU_GPU_CV": 2.58752, "VDD_SOC": 1.5127}),
        (
            AGX_XAVIER,
            {"GPU": 0.38, "CPU": 0.76, "SOC": 1.14, "CV": 0.0, "VDDRQ": 0.475, "SYS5V": 1.984},
        ),
        (NANO, {"POM_5V_IN": 2.311, "POM_5V_GPU": 0.04, "POM_5V_CPU": 0.08}),
        (THOR, {"VIN": 23.0, "VDD_GPU": -0.384}),
    ],
    ids=["agx-orin-jetpack-5", "agx-orin-jetpack-6", "orin-nano", "agx-xavier", "nano", "thor"],
)
def test_rails_of_jetsons(tmp_path: Path, files: dict[str, str], watts: dict[str, float]) -> None:
    meters, notes = find_meters(write(tmp_path, files), gpu=None)
    read = {meter.name: meter.watts() for meter in meters if meter.watts}
    assert read == pytest.approx(watts, abs=1e-3) and list(read) == list(watts)
    assert notes == []
    whole = [meter.name for meter in meters if meter.covers.startswith("the whole")]
    assert whole == [name for name in watts if name in ("VIN", "VDD_IN", "POM_5V_IN")]
    assert {m.covers for m in meters if m.name not in whole} <= {"one rail each, not the whole"}


def test_a_rail_that_falls_silent_has_no_power(tmp_path: Path) -> None:
    (first, *_), _ = find_meters(write(tmp_path, ORIN_NANO), gpu=None)
    (tmp_path / f"{INA}/1-0040/hwmon/hwmon1/curr1_input").write_text("")
    assert first.watts is not None and first.watts() is None


# The zones of github.com/powercap/powercap/issues/3, with a second socket and intel-rapl-mmio.
RAPL = {
    f"sys/class/powercap/{zone}/{file}": text
    for zone, name, energy in (
        ("intel-rapl:0", "package-0", 262143328000),
        ("intel-rapl:0:0", "core", 5),
        ("intel-rapl:0:1", "uncore", 5),
        ("intel-rapl:0:2", "dram", 2469474853),
        ("intel-rapl:1", "package-1", 7000000),
        ("intel-rapl:1:0", "dram", 8000000),
        ("intel-rapl:2", "psys", 9000000),
        ("intel-rapl-mmio:0", "package-0", 262143328000),
    )
    for file, text in (
        ("name", name),
        ("energy_uj", str(energy)),
        ("max_energy_range_uj", "262143328850"),
    )
}


def test_counters_of_processors_and_where_they_wrap(tmp_path: Path) -> None:
    meters, notes = find_meters(write(tmp_path, RAPL), gpu=None)
    names = ["package-0", "package-0 dram", "package-1", "package-1 dram", "psys"]
    assert [meter.name for meter in meters] == names and notes == []
    assert "neither memory nor board" in meters[0].covers and "memory" in meters[1].covers
    package = meters[0]
    assert package.joules is not None and package.watts is None
    before = package.joules()
    counter = tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj"
    counter.write_text("262143328500\n")
    assert package.spent(before, package.joules()) == pytest.approx(500e-6, abs=1e-9)
    counter.write_text("2000000\n")  # past its end
    assert package.spent(before, package.joules()) == pytest.approx(2.00085, abs=1e-6)
    counter.write_text("")
    assert package.spent(before, package.joules()) is None


def test_a_counter_whose_end_is_unknown_gives_nothing_when_it_wraps() -> None:
    meter = Meter("package-0", "RAPL", "the processor", joules=lambda: 1.0)
    assert meter.spent(5.0, 7.0) == 2.0 and meter.spent(5.0, 1.0) is None


def test_counters_that_only_root_may_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, RAPL)
    real = os.open

    def refuse(path: Any, flags: int, *more: Any, **others: Any) -> int:
        if str(path).endswith("energy_uj"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags, *more, **others)

    monkeypatch.setattr(os, "open", refuse)  # the tests may run as root
    meters, (note,) = find_meters(tmp_path, gpu=None)
    assert meters == [] and "only root may read it" in note
    assert "run: sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj" in note


def test_a_virtual_machine_tells_nothing(tmp_path: Path) -> None:
    assert find_meters(tmp_path, gpu=None) == ([], ["this machine tells no power"])
    assert clock_state(tmp_path, gpu=None) == {}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (ORIN_NANO, "VDD_IN (INA3221), VDD_CPU_GPU_CV (INA3221), VDD_SOC (INA3221)\n"),
        ({}, "this machine tells no power\n"),
    ],
)
def test_doctor_says_what_can_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], said: str
) -> None:
    monkeypatch.setattr(nvml, "find_gpu", lambda index: None)
    examined = json.loads(json.dumps(examine(write(tmp_path, files))))
    text = io.StringIO()
    print_examination(examined, Console(file=text, width=80))
    assert f"power: {said}" in text.getvalue()
    assert [meter["source"] for meter in examined["power"]["meters"]] == ["INA3221"] * 3 * bool(
        files
    )


ORIN_STATE = {
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1510400",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1510400",
    "sys/devices/system/cpu/cpu5/cpufreq/scaling_cur_freq": "729600",
    "sys/class/devfreq/17000000.gpu/cur_freq": "306000000",
    "sys/class/devfreq/17000000.gpu/max_freq": "624750000",
    "sys/class/devfreq/gpu-nvd-0/cur_freq": "1",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "47500",
    "sys/class/thermal/thermal_zone2/type": "cv0-thermal",
    "sys/class/thermal/thermal_zone2/temp": "-256000",  # a unit that is off
    "sys/class/thermal/thermal_zone4/type": "PMIC-Die",
    "sys/class/thermal/thermal_zone4/temp": "100000",  # always
    "sys/class/thermal/cooling_device7/type": "pwm-fan",
    "sys/class/thermal/cooling_device7/cur_state": "3",
    "sys/class/thermal/cooling_device9/type": "gpu-throttle-alert",
    "sys/class/thermal/cooling_device9/cur_state": "0",
    "sys/class/hwmon/hwmon3/oc1_event_cnt": "0",
    "sys/class/hwmon/hwmon3/oc3_event_cnt": "179",
}


def test_clocks_heat_and_throttling_of_an_orin(tmp_path: Path) -> None:
    before = clock_state(write(tmp_path, ORIN_STATE), gpu=None)
    assert before == {
        "cpu_mhz": [730, 1510],
        "cpu_limit_mhz": 1510,
        "gpu_mhz": [306, 306],
        "gpu_limit_mhz": 625,
        "temperature_c": {"cpu-thermal": 47.5},
        "throttle_events": {"oc1": 0, "oc3": 179},
    }
    assert throttling(before, before) == []
    write(tmp_path, {"sys/class/thermal/cooling_device9/cur_state": "1"})
    write(tmp_path, {"sys/class/hwmon/hwmon3/oc3_event_cnt": "186"})
    after = clock_state(tmp_path, gpu=None)
    assert throttling(before, after) == ["oc3 7 times", "gpu-throttle-alert"]


def test_throttling_of_an_x86_processor_is_counted_once_per_package(tmp_path: Path) -> None:
    def counts(core: int, package: int) -> dict[str, Any]:
        for cpu in range(2):
            folder = f"sys/devices/system/cpu/cpu{cpu}/thermal_throttle"
            files = {f"{folder}/core_throttle_count": str(core)}
            write(tmp_path, files | {f"{folder}/package_throttle_count": str(package)})
        return clock_state(tmp_path, gpu=None)

    before, after = counts(1, 10), counts(1, 14)
    assert before["throttle_events"] == {"processor core": 2, "processor package": 10}
    assert throttling(before, after) == ["processor package 4 times"]


def test_a_sensor_that_says_try_again_is_unknown(tmp_path: Path) -> None:
    """As an Orin Nano's cv0-thermal does. A pipe that somebody writes to later answers so too."""
    pipe = tmp_path / "temp"
    os.mkfifo(pipe)
    writer = os.open(pipe, os.O_RDWR)
    told: list[Any] = []
    reader = threading.Thread(
        target=lambda: told.extend((read_system_file(pipe), read_number(pipe))), daemon=True
    )
    reader.start()
    reader.join(10)
    os.write(writer, b"1\n")  # so that a reader who waits goes on
    os.close(writer)
    assert told == ["", None]


def test_gpu_on_the_stand_ins(tmp_path: Path) -> None:
    library = fake_cuda.build(tmp_path)
    fake_cuda.build(tmp_path, ("fake_nvml.c",), "libnvidia-ml.so.1")
    fake_cuda.run_cases("machine/nvml_cases.py", library)
