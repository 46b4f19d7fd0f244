"""Chooses the CUDA binding: pycuda where it works, else NVIDIA's cuda-python."""

from __future__ import annotations

import importlib

from lgvit_edge.errors import MissingDependency, UsageError
from lgvit_edge.machine.wheels import cuda_python
from lgvit_edge.runtime.cuda.api import Cuda
from lgvit_edge.runtime.cuda.driver import Driver

# In order of preference: the module that is imported, and what installs it.
_BINDINGS = {
    "pycuda": (
        "pycuda.driver",
        "pip install pycuda (it compiles: the CUDA toolkit with nvcc and a C++ compiler are "
        "needed)",
    ),
    "cuda-python": ("cuda.bindings.driver", "pip install {cuda_python}"),
}


def open_cuda(binding: str | None = None, device: int = 0) -> Cuda:
    """Open the GPU ``device`` with ``binding``; None for pycuda where it works, else cuda-python.

    Raises:
        UsageError: there is no such binding.
        BackendError: there is no driver or no such GPU, or the driver refuses.
        MissingDependency: the binding is not installed, or is broken.
    """
    if binding is not None and binding not in _BINDINGS:
        raise UsageError(f"binding must be one of {', '.join(_BINDINGS)}, found {binding!r}")
    # The driver comes first: without it pycuda cannot be imported, and no binding would help.
    driver = Driver()
    tried = [binding] if binding else list(_BINDINGS)
    failures = []
    for name in tried:
        try:
            module = importlib.import_module(_BINDINGS[name][0])
        except ImportError as error:
            failures.append(f"{name}: {error}")
            continue
        if name == "pycuda":
            from lgvit_edge.runtime.cuda.pycuda import PyCuda

            return PyCuda(driver, module, device)
        from lgvit_edge.runtime.cuda.cuda_python import CudaPython

        return CudaPython(driver, module, device)
    commands = ", or ".join(_BINDINGS[name][1] for name in tried)
    commands = commands.format(cuda_python=cuda_python())
    raise MissingDependency(
        f"{' or '.join(tried)} is needed for CUDA and cannot be imported "
        f"({'; '.join(failures)}); run: {commands}"
    )
