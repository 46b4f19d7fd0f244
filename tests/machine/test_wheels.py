"""Packages for CUDA 12 and 13, beside drivers that run one or both."""

from __future__ import annotations

import dataclasses
from importlib.metadata import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lgvit_edge.errors import MissingDependency
from lgvit_edge.machine import wheels
from lgvit_edge.machine.gpu import Gpu
from lgvit_edge.machine.jetson import Jetson
from lgvit_edge.machine.preflight import explain_import_error
from lgvit_edge.runtime.backends import checks
from lgvit_edge.runtime.cuda.bindings import _BINDINGS
from lgvit_edge.runtime.examination import examine

GPU = Gpu("NVIDIA GeForce RTX 4090", 128, "8.9", "12.6", 24 << 30, False)
BOARD: Any = SimpleNamespace(model="NVIDIA Jetson Orin Nano")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the CUDA that the driver supports, None for no GPU, and the packages installed."""

    def pretend(cuda: str | None, **installed: str) -> None:
        gpu = None if cuda is None else dataclasses.replace(GPU, driver=cuda)
        names = {name.replace("_", "-"): version for name, version in installed.items()}
        monkeypatch.setattr(wheels, "find_gpu", lambda: gpu)
        for module in (wheels, checks):
            monkeypatch.setattr(module, "version_of", names.get)

    return pretend


@pytest.mark.parametrize(
    ("cuda", "rtx", "tensorrt", "gpu", "binding"),
    [
        (None, "rtx", "tensorrt", "gpu", "cuda-python"),
        ("13.0", "rtx", "tensorrt", "gpu", "cuda-python"),
        ("12.6", "rtx12", "tensorrt12", "gpu12", "'cuda-python<13'"),
        ("12.2", "rtx12", "tensorrt12", "gpu12", "'cuda-python<13'"),
    ],
)
def test_what_is_told_to_install_fits_the_driver(
    machine: Any, cuda: str | None, rtx: str, tensorrt: str, gpu: str, binding: str
) -> None:
    machine(cuda)
    found = wheels.extra("rtx"), wheels.extra("tensorrt"), wheels.extra("gpu"), wheels.cuda_python()
    assert found == (rtx, tensorrt, gpu, binding)
    assert wheels.extra("export") == "export"
    missing = ModuleNotFoundError("No module named 'tensorrt_rtx'", name="tensorrt_rtx")
    assert f"pip install 'lgvit-edge[{rtx}]'" in explain_import_error(missing, None)
    assert "{cuda_python}" in _BINDINGS["cuda-python"][1]


@pytest.mark.parametrize(
    ("cuda", "package", "installed", "jetson", "told"),
    [
        ("13.0", "tensorrt-rtx", {"tensorrt_rtx": "1.7.1", "tensorrt_rtx_cu13": "1.7.1"}, None, ""),
        ("12.6", "tensorrt-rtx", {"tensorrt_rtx_cu12": "1.7.1"}, None, ""),
        (None, "tensorrt-rtx", {"tensorrt_rtx_cu13": "1.7.1"}, None, ""),
        ("12.6", "tensorrt", {}, BOARD, ""),  # JetPack's own is no package of pip's
        (
            "12.6",
            "tensorrt-rtx",
            {"tensorrt_rtx": "1.7.1", "tensorrt_rtx_cu13": "1.7.1", "tensorrt_rtx_cu13_libs": "1"},
            None,
            "tensorrt-rtx is built for CUDA 13 here, and the driver supports CUDA 12.6; update the "
            "driver to 580 or newer, or run: pip uninstall -y tensorrt-rtx tensorrt-rtx-cu13 "
            "tensorrt-rtx-cu13-libs && pip install 'lgvit-edge[rtx12]'",
        ),
        (
            "12.6",
            "tensorrt",
            {"tensorrt_cu13": "11.4.0"},
            BOARD,
            "tensorrt is built for CUDA 13 here, and the driver supports CUDA 12.6; leave it to "
            "JetPack, run: pip uninstall -y tensorrt-cu13",
        ),
        (
            "12.6",
            "cuda-bindings",
            {"cuda_bindings": "13.5.0"},
            BOARD,
            "cuda-bindings is built for CUDA 13 here, and the driver supports CUDA 12.6; run: pip "
            "install 'cuda-python<13'",
        ),
        ("12.6", "cuda-bindings", {"cuda_bindings": "12.9.10"}, BOARD, ""),
        ("12.6", "cuda-bindings", {}, None, ""),
    ],
)
def test_a_package_that_the_driver_cannot_run_is_named(
    machine: Any,
    cuda: str | None,
    package: str,
    installed: dict[str, str],
    jetson: Jetson | None,
    told: str,
) -> None:
    machine(cuda, **installed)
    assert (wheels.misfit(package, jetson) or "") == told


def test_an_onnxruntime_for_cuda_13(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine("12.6", onnxruntime_gpu="1.27.0")
    for version, told in (("13.0", "'lgvit-edge[gpu12]'"), ("12.8", "")):
        info = SimpleNamespace(cuda_version=version)
        monkeypatch.setattr(wheels, "try_import", lambda name, info=info: info)
        assert told in (wheels.misfit("onnxruntime-gpu", None) or "") and bool(told) == bool(
            wheels.misfit("onnxruntime-gpu", None)
        )


def test_a_build_for_cuda_12_counts_as_installed(machine: Any) -> None:
    machine("12.6", tensorrt_rtx_cu12="1.7.1")
    assert wheels.installed("tensorrt-rtx") == "1.7.1" and wheels.installed("tensorrt") is None
    row = {row["name"]: row for row in examine(Path("/nowhere"))["packages"]}["tensorrt-rtx"]
    assert (row["version"], row["extra"]) == ("1.7.1", "rtx12")


def test_doctor_tells_of_a_library_that_does_not_start(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def __init__(self, library: str) -> None:
            pass

        def make(self, kind: str) -> None:
            raise MissingDependency(f"no {kind}: CUDA initialization failure")

    machine("13.0", cuda_bindings="13.5.0")
    monkeypatch.setattr(checks, "try_import", lambda name: SimpleNamespace(__version__="10.3.0"))
    monkeypatch.setattr(checks, "TensorRT", Broken)
    told = {check.name: check for check in checks.tensorrt_checks(True, None)}
    for task, kind in (("build", "Builder"), ("run", "Runtime")):
        check = told[f"tensorrt ({task} engines)"]
        assert not check.runs and check.note == f"no {kind}: CUDA initialization failure"


def test_doctor_names_what_the_driver_cannot_run(machine: Any, monkeypatch: Any) -> None:
    machine("12.6", tensorrt_rtx="1.7.1", tensorrt_rtx_cu13="1.7.1", cuda_bindings="13.5.0")
    monkeypatch.setattr(checks, "try_import", lambda name: SimpleNamespace(__version__="1.7.1"))
    monkeypatch.setattr(checks, "TensorRT", lambda library: SimpleNamespace(make=lambda kind: None))
    told = {check.name: check for check in checks.tensorrt_checks(True, None)}
    run = told["tensorrt-rtx (run engines)"]
    assert not run.runs
    assert "cuda-bindings is built for CUDA 13" in run.note and "[rtx12]" in run.note
    assert told["tensorrt-rtx (build engines)"].runs  # which needs no driver


def test_every_extra_is_shown_and_another_build_of_opencv_counts(machine: Any) -> None:
    extras = metadata("lgvit-edge").get_all("Provides-Extra") or []
    # Of two builds for two drivers one is shown.
    twins = {extra for extra in extras if extra.endswith("12")}
    shown = {row["extra"] for row in examine(Path("/nowhere"))["packages"]}
    assert set(extras) - twins - {"dev"} <= shown
    machine(None, opencv_contrib_python="5.0.0")
    assert wheels.installed("opencv-python-headless") == "5.0.0"
