"""CUDA through both bindings, on a stand-in for the driver; and which binding is opened."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

import fake_cuda
import pytest
from processes import python

from lgvit_edge.errors import UsageError
from lgvit_edge.runtime.cuda.bindings import open_cuda


def importable(module: str) -> bool:
    """Whether the module is installed; it is not run, since that needs the driver."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is not there either
        return False


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_cuda.build(tmp_path_factory.mktemp("driver"))


@pytest.mark.parametrize(
    ("binding", "module"), [("pycuda", "pycuda.driver"), ("cuda-python", "cuda.bindings.driver")]
)
@pytest.mark.parametrize("file", ["runtime/cuda_cases.py", "runtime/cuda_close_cases.py"])
def test_binding_on_the_stand_in(file: str, binding: str, module: str, library: Path) -> None:
    if not importable(module):
        pytest.skip(f"{binding} is not installed")
    fake_cuda.run_cases(file, library, CUDA_BINDING=binding)


def test_choice_of_a_binding_on_the_stand_in(library: Path) -> None:
    fake_cuda.run_cases("runtime/cuda_choice_cases.py", library)


def test_unknown_binding() -> None:
    with pytest.raises(UsageError, match="one of pycuda, cuda-python, found 'cupy'"):
        open_cuda("cupy")


def test_no_driver() -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pass
    else:
        pytest.skip("a CUDA driver is installed here")
    code = "from lgvit_edge.runtime.cuda.bindings import open_cuda; open_cuda()"
    said = python(code, fails=True)
    assert "BackendError: no CUDA driver here" in said and "lgvit-edge doctor" in said


def test_importing_loads_nothing_of_cuda() -> None:
    code = (
        "import sys; before = set(sys.modules);"  # cuda-bindings 12 loads a part at every start
        "import lgvit_edge.runtime.cuda.pycuda, lgvit_edge.runtime.cuda.cuda_python; "
        "print([m for m in set(sys.modules) - before if m.split('.')[0] in ('pycuda', 'cuda')])"
    )
    assert python(code) == "[]\n"
