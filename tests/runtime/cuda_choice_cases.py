"""Which binding is opened, on the stand-in for the driver; ``test_cuda.py`` starts this file."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import fake_cuda
import pytest
from pytest import MonkeyPatch

from lgvit_edge.errors import BackendError, MissingDependency
from lgvit_edge.runtime.cuda import cuda_python
from lgvit_edge.runtime.cuda import pycuda as cuda_pycuda
from lgvit_edge.runtime.cuda.bindings import open_cuda
from lgvit_edge.runtime.cuda.driver import Driver

FAKE = fake_cuda.load()
MISSING = ModuleNotFoundError("No module named 'pycuda'")
BROKEN = ImportError("libcurand.so.10: cannot open shared object file")


class Opened:
    """Stands for either implementation."""

    def __init__(self, driver: Driver, module: ModuleType, index: int) -> None:
        self.module, self.index = module.__name__, index


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: MonkeyPatch) -> dict[str, Any]:
    """By module: what importing it gives or raises."""
    FAKE.fake_reset()
    modules: dict[str, Any] = {}
    real = importlib.import_module

    def import_module(name: str, package: str | None = None) -> Any:
        if name not in ("pycuda.driver", "cuda.bindings.driver"):
            return real(name, package)
        if isinstance(found := modules.get(name, ModuleType(name)), Exception):
            raise found
        return found

    monkeypatch.setattr(importlib, "import_module", import_module)
    monkeypatch.setattr(cuda_pycuda, "PyCuda", Opened)
    monkeypatch.setattr(cuda_python, "CudaPython", Opened)
    return modules


def opened(binding: str | None = None) -> str:
    cuda: Any = open_cuda(binding, 3)
    assert cuda.index == 3
    return str(cuda.module)


def test_pycuda_comes_first() -> None:
    assert opened() == opened("pycuda") == "pycuda.driver"
    assert opened("cuda-python") == "cuda.bindings.driver"


@pytest.mark.parametrize("failure", [MISSING, BROKEN])
def test_cuda_python_where_pycuda_fails(stand_ins: dict[str, Any], failure: Exception) -> None:
    stand_ins["pycuda.driver"] = failure
    assert opened() == "cuda.bindings.driver"
    with pytest.raises(MissingDependency) as caught:
        open_cuda("pycuda")  # never another one than asked for
    assert str(failure) in str(caught.value)
    assert "pip install pycuda" in str(caught.value) and "rtx" not in str(caught.value)


def test_neither(stand_ins: dict[str, Any]) -> None:
    stand_ins["pycuda.driver"] = BROKEN
    stand_ins["cuda.bindings.driver"] = ModuleNotFoundError("No module named 'cuda'")
    with pytest.raises(MissingDependency) as caught:
        open_cuda()
    text = str(caught.value)
    assert "pycuda or cuda-python is needed" in text
    assert "libcurand.so.10" in text and "No module named 'cuda'" in text
    assert "pip install pycuda (it compiles: the CUDA toolkit with nvcc" in text
    assert text.endswith("pip install 'cuda-python<13'")  # the stand-in has CUDA 12.6
    with pytest.raises(MissingDependency, match="cuda-python is needed .*'cuda-python<13'"):
        open_cuda("cuda-python")


def test_no_gpu() -> None:
    FAKE.fake_set_driver(12060, 0)
    with pytest.raises(BackendError) as caught:
        open_cuda()
    assert str(caught.value) == (
        "no CUDA GPU can be used here (CUDA: cuInit failed: CUDA_ERROR_NO_DEVICE (no CUDA-capable "
        "device is detected, 100)); run: lgvit-edge doctor"
    )


def test_no_driver(monkeypatch: MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", missing)
    with pytest.raises(BackendError, match="no CUDA driver here .libcuda.*lgvit-edge doctor"):
        open_cuda()


def test_too_old_for_cuda_python(stand_ins: dict[str, Any], monkeypatch: MonkeyPatch) -> None:
    monkeypatch.undo()
    FAKE.fake_set_driver(11040, 1)
    module: Any = ModuleType("cuda.bindings.driver")

    def start(flags: int) -> None:
        raise RuntimeError("Failed to get cuGetProcAddress_v2")

    module.cuInit = start
    with pytest.raises(BackendError) as caught:
        cuda_python.CudaPython(Driver(), module, 0)
    text = str(caught.value)
    assert "Failed to get cuGetProcAddress_v2" in text
    assert "newer, found 11.4; update the driver, or run: pip install pycuda" in text


def test_error_that_the_driver_cannot_name() -> None:
    error = Driver().refused("cuGraphInstantiateWithFlags", 12345)
    assert str(error) == "CUDA: cuGraphInstantiate failed: unknown (unknown, 12345)"
