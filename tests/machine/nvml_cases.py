"""The GPU's own figures, on stand-ins for the driver; ``test_power.py`` starts this file."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import fake_cuda
import pytest

from lgvit_edge.machine import nvml
from lgvit_edge.machine.clocks import clock_state, throttling
from lgvit_edge.machine.power import find_meters

CUDA = fake_cuda.load()
NVML = ctypes.CDLL("libnvidia-ml.so.1")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    CUDA.fake_reset()
    CUDA.fake_set_driver(12080, 2)
    NVML.fake_nvml(0, 0)
    nvml.find_gpu.cache_clear()
    yield
    nvml.find_gpu.cache_clear()


def change(millijoules: int, reasons: int) -> None:
    NVML.fake_nvml_set(ctypes.c_ulonglong(millijoules), ctypes.c_ulonglong(reasons))


def test_the_counter_is_that_of_the_card_which_cuda_calls_the_first(tmp_path: Path) -> None:
    (meter,), notes = find_meters(tmp_path)
    assert (meter.name, meter.source, notes) == ("NVIDIA GeForce RTX 4090", "NVML", [])
    assert meter.covers == "the whole graphics card with its memory"
    assert meter.watts is None and meter.joules is not None
    before = meter.joules()
    assert before == pytest.approx(123.456)
    change(125456, 0)
    assert meter.spent(before, meter.joules()) == pytest.approx(2.0)


def test_the_second_card_has_a_counter_of_its_own(tmp_path: Path) -> None:
    names = [find_meters(tmp_path, gpu=index)[0][0].name for index in (0, 1)]
    assert names[0] == "NVIDIA GeForce RTX 4090" != names[1]
    assert find_meters(tmp_path, gpu=2)[0] == []


def test_cards_before_volta_are_sampled(tmp_path: Path) -> None:
    NVML.fake_nvml(1, 0)
    (meter,), _ = find_meters(tmp_path)
    assert meter.joules is None and meter.watts is not None
    assert meter.watts() == pytest.approx(215.5)


def test_a_jetsons_nvml_supports_nothing(tmp_path: Path) -> None:
    NVML.fake_nvml(0, 1)
    assert nvml.find_gpu() is not None
    assert find_meters(tmp_path) == ([], ["this machine tells no power"])
    assert clock_state(tmp_path) == {}


def test_a_driver_without_a_function_tells_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = nvml.find_gpu()
    assert gpu is not None
    monkeypatch.setattr(nvml, "_SM", 7)  # a clock that it does not know
    assert set(gpu.state()) == {"memory_mhz", "power_limit_w", "temperature_c", "throttled"}
    assert gpu._ask(ctypes.c_uint, "nvmlDeviceGetWhatIsNotThere") is None


def test_clocks_heat_and_what_holds_them_back(tmp_path: Path) -> None:
    assert clock_state(tmp_path, gpu=None) == {}
    state = clock_state(tmp_path)
    assert state == {
        "nvidia": {
            "sm_mhz": 2520,
            "sm_limit_mhz": 3105,
            "memory_mhz": 10501,
            "power_limit_w": 450.0,
            "temperature_c": 71,
            "throttled": ["power limit", "temperature (hardware)"],
        }
    }
    assert throttling({}, state) == ["GPU: power limit", "GPU: temperature (hardware)"]
    change(0, 0x103)  # idle, clocks set by somebody or by the display: nothing holds back
    assert throttling({}, clock_state(tmp_path)) == []


def test_without_a_gpu_there_is_none(tmp_path: Path) -> None:
    CUDA.fake_set_driver(12080, 0)
    assert nvml.find_gpu() is None
    assert find_meters(tmp_path)[0] == []
