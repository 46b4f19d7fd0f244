"""Which of NVIDIA's Python packages fit the driver of this machine.

They are built for CUDA 12 or for CUDA 13. A driver runs what was built for its own CUDA or an older
one: CUDA 13 needs driver 580 or newer, CUDA 12 needs 535 (NVIDIA's documentation of TensorRT
11.4.0, Prerequisites). JetPack 6 has CUDA 12, and its driver comes with it.
"""

from __future__ import annotations

from lgvit_edge._support.optional import try_import
from lgvit_edge.machine.environment import version_of
from lgvit_edge.machine.gpu import find_gpu
from lgvit_edge.machine.jetson import Jetson

_NEWEST = 13
_TWICE = {"gpu": "onnxruntime-gpu", "rtx": "tensorrt-rtx", "tensorrt": "tensorrt"}  # extras
# OpenCV's other builds install the same module.
_OPENCV = ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")
_BUILDS = {"opencv-python-headless": _OPENCV}
_UPDATE = "update the driver to 580 or newer"


def installed(name: str) -> str | None:
    """Return the installed version of a package or of another build of it, or None."""
    builds = (name, f"{name}-cu12", *_BUILDS.get(name, ()))
    return next((number for build in builds if (number := version_of(build))), None)


def extra(name: str) -> str:
    """Return the extra of lgvit-edge to install here: ``rtx12`` for ``rtx`` on an older driver."""
    return f"{name}12" if name in _TWICE and _cuda() < _NEWEST else name


def cuda_python() -> str:
    """Return what to give pip for a cuda-python that works here."""
    # Without a version pip takes 13, which JetPack 6 and older drivers refuse.
    return "cuda-python" if _cuda() >= _NEWEST else "'cuda-python<13'"


def misfit(name: str, jetson: Jetson | None) -> str | None:
    """Return why an installed package cannot run on this driver, and the cure; None if it can.

    ``name`` is ``tensorrt``, ``tensorrt-rtx``, ``cuda-bindings`` or ``onnxruntime-gpu``.
    """
    built, gpu = _built_for(name), find_gpu()
    if gpu is None or built <= _cuda():
        return None
    what = f"{name} is built for CUDA {built} here, and the driver supports CUDA {gpu.driver}"
    if name == "cuda-bindings":
        return f"{what}; run: pip install {cuda_python()}"
    remove = "pip uninstall -y " + " ".join(_parts(name, built))
    if jetson is not None:
        return f"{what}; leave it to JetPack, run: {remove}"
    own = next(extra for extra, package in _TWICE.items() if package == name)
    return f"{what}; {_UPDATE}, or run: {remove} && pip install 'lgvit-edge[{extra(own)}]'"


def _parts(name: str, built: int) -> list[str]:
    """Return the installed packages that come with one, itself among them."""
    parts = [name, *(f"{name}-cu{built}{part}" for part in ("", "-libs", "-bindings"))]
    return [part for part in parts if version_of(part)]


def _built_for(name: str) -> int:
    """Return the CUDA that an installed package is built for; 0 where it does not tell."""
    if name == "cuda-bindings":
        return int((version_of(name) or "0").split(".")[0])
    if name == "onnxruntime-gpu":  # 13 since 1.27
        info = try_import("onnxruntime.capi.build_and_package_info")
        return int(getattr(info, "cuda_version", "0").split(".")[0])
    return next((cuda for cuda in (13, 12) if version_of(f"{name}-cu{cuda}")), 0)


def _cuda() -> int:
    """Return the CUDA that the driver supports; the newest where there is no GPU to ask for."""
    gpu = find_gpu()
    return _NEWEST if gpu is None else int(gpu.driver.split(".")[0])
