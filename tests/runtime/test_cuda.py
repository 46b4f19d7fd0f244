"""CUDA through both bindings, on a stand-in for the driver; and which binding is opened."""

from __future__ import annotations

import ctypes
import importlib.util
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lgvit_edge.errors import UsageError
from lgvit_edge.runtime.cuda.bindings import open_cuda

fake_cuda = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "fakes/fake_cuda.py")))


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
    variables = {"CUDA_BINDING": binding}
    fake_cuda.run_cases(file, library, "--noconftest", variables=variables)


def test_choice_of_a_binding_on_the_stand_in(library: Path) -> None:
    fake_cuda.run_cases("runtime/cuda_choice_cases.py", library, "--noconftest")


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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "BackendError: no CUDA driver here" in done.stderr
    assert "lgvit-edge doctor" in done.stderr


def test_importing_loads_nothing_of_cuda() -> None:
    code = (
        "import sys; import lgvit_edge.runtime.cuda.pycuda, lgvit_edge.runtime.cuda.cuda_python; "
        "print([m for m in sys.modules if m.split('.')[0] in ('pycuda', 'cuda')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
