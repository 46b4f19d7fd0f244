"""Builds the stand-in for NVIDIA's driver (``fake_cuda.c``) and runs tests on it.

Those tests run in a process of their own. The bindings remember the functions of the driver they
met first, and the stand-in would stay behind as the process's ``libcuda.so.1``: tests that ask for
a driver would then find it, and on a machine with a GPU nothing could reach the real one.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lgvit_edge.runtime.cuda.api import Cuda

HERE = Path(__file__).resolve().parent
COUNTED = (
    *("memory", "pinned", "streams", "events", "graphs", "runnable graphs", "contexts", "modules"),
)
KERNELS = HERE.parents[1] / "runtime" / "cuda" / "kernels"


def build(
    folder: Path,
    sources: tuple[str, ...] = ("fake_cuda.c", "fake_kernels.cpp"),
    name: str = "libcuda.so.1",
) -> Path:
    """Compile a stand-in to ``folder/<name>``; skip without a C and a C++ compiler."""
    compilers = {".c": ("cc", "gcc", "clang"), ".cpp": ("c++", "g++", "clang++")}
    library, objects = folder / name, []
    options = ["-fPIC", "-O1", "-Wall", "-I", str(KERNELS)]
    for source in map(Path, sources):
        compiler = next(filter(shutil.which, compilers[source.suffix]), None)
        if compiler is None:
            pytest.skip(f"needs {compilers[source.suffix][0]}, for the stand-in of {name}")
        objects.append(str(folder / f"{source.stem}.o"))
        command = [compiler, *options, "-c", "-o", objects[-1], str(HERE / source)]
        subprocess.run(command, check=True)
    link = ["-shared", f"-Wl,-soname,{name}", "-o", str(library), *objects, "-ldl", "-lm"]
    subprocess.run([compiler, *link], check=True)
    return library


def run_cases(file: str, library: Path, **variables: str) -> None:
    """Run the tests of ``tests/<file>`` in a new process whose CUDA driver is ``library``."""
    places = filter(None, [str(library.parent), os.environ.get("LD_LIBRARY_PATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest"]
    done = subprocess.run(
        [*command, str(HERE.parent / file)],
        env={**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(places), **variables},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode:
        pytest.fail(f"{file} failed on the stand-in:\n{done.stdout}{done.stderr}", pytrace=False)


def load() -> ctypes.CDLL:
    """The stand-in, inside the process that ``run_cases`` started: for its knobs."""
    library = ctypes.CDLL("libcuda.so.1", mode=ctypes.RTLD_GLOBAL)
    assert hasattr(library, "fake_reset"), "this process found another libcuda.so.1"
    # pycuda names many functions that the stand-in lacks and nobody calls: look them up late.
    sys.setdlopenflags(os.RTLD_LAZY)
    return library


def counts(library: ctypes.CDLL) -> dict[str, int]:
    """How many of each are alive."""
    numbers = (ctypes.c_int * len(COUNTED))()
    library.fake_counts(numbers)
    return dict(zip(COUNTED, numbers, strict=True))


def roundtrip(cuda: Cuda) -> tuple[NDArray[Any], NDArray[Any], Callable[[], None]]:
    """An input, an output, and what queues the copies input -> device -> device -> output."""
    source, target = cuda.pinned((2, 3), np.float32), cuda.pinned((2, 3), "float32")
    first, second = cuda.allocate(source.nbytes), cuda.allocate(source.nbytes)

    def queue() -> None:
        cuda.upload(first, source.ctypes.data, source.nbytes)
        cuda.move(second, first, source.nbytes)
        cuda.download(target.ctypes.data, second, source.nbytes)

    return source, target, queue


def captured(cuda: Cuda, queue: Callable[[], None]) -> Any:
    cuda.begin_capture()
    queue()
    return cuda.runnable(cuda.end_capture())


def in_thread(work: Callable[[], Any]) -> Any:
    """Run in another thread; what it returns, or raises."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


def current_context(library: ctypes.CDLL) -> int | None:
    context = ctypes.c_void_p()
    assert library.cuCtxGetCurrent(ctypes.byref(context)) == 0
    return context.value
