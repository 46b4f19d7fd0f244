"""Checks for ``doctor`` what each backend can do on this machine, without running a bundle."""

from __future__ import annotations

from lgvit_edge._support.optional import require
from lgvit_edge.errors import MissingDependency
from lgvit_edge.machine.environment import version_of
from lgvit_edge.machine.jetson import Jetson
from lgvit_edge.machine.openvino import shared_core
from lgvit_edge.machine.preflight import explain_import_error, try_import
from lgvit_edge.runtime.backends.base import Check
from lgvit_edge.runtime.backends.ort import has_cuda
from lgvit_edge.runtime.backends.ort_pool import can_share


def onnxruntime_checks(driver: bool, jetson: Jetson | None) -> list[Check]:
    """Check whether ONNX Runtime can use the CPU and an NVIDIA GPU."""
    return [_onnxruntime("cpu", "cpu", driver, jetson), _onnxruntime("cuda", "gpu", driver, jetson)]


def openvino_checks(*_: object) -> list[Check]:
    """Check which devices OpenVINO can use here."""
    try:
        openvino = require("openvino", extra="openvino")
    except MissingDependency as error:
        return [Check("openvino", False, str(error))]
    devices = ", ".join(shared_core().available_devices).lower()
    number = openvino.__version__.split("-")[0]
    return [Check("openvino", bool(devices), f"openvino {number} on {devices}")]


def tensorrt_checks(driver: bool, jetson: Jetson | None) -> list[Check]:
    """Check whether TensorRT and TensorRT-RTX can build and run engines here."""
    libraries, tasks = ("tensorrt", "tensorrt-rtx"), ("build", "run")
    return [_engines(name, task, driver, jetson) for name in libraries for task in tasks]


def _onnxruntime(device: str, extra: str, driver: bool, jetson: Jetson | None) -> Check:
    name = f"onnxruntime on {device}"
    try:
        ort = require("onnxruntime", extra=extra)
    except MissingDependency as error:
        return Check(name, False, str(error))
    if device == "cpu" or (driver and has_cuda()):
        slower = "" if can_share(ort) else ", with private thread pools: 1.23 and newer are faster"
        return Check(name, True, f"onnxruntime {ort.__version__}{slower}")
    note = "this onnxruntime has no CUDA provider"
    if not driver:
        note = "no NVIDIA driver here"
    elif jetson is None:
        note += "; run: pip uninstall onnxruntime && pip install 'lgvit-edge[gpu]'"
    else:
        note += ", and PyPI has none for JetPack before 7.2; use tensorrt or the cpu"
    return Check(name, False, note)


def _engines(name: str, task: str, driver: bool, jetson: Jetson | None) -> Check:
    module = name.replace("-", "_")
    loaded = try_import(module)
    missing, cures = [], []
    if isinstance(loaded, ImportError):
        what, _, cure = explain_import_error(loaded, jetson).rpartition("; ")
        missing.append(what)
        cures.append(cure)
    elif jetson is not None and name == "tensorrt-rtx" and task == "run":
        missing.append("TensorRT-RTX does not support Jetson")
        cures.append("use JetPack's TensorRT")
    # TensorRT measures candidates on the GPU it builds for; TensorRT-RTX leaves that to the first
    # run and builds anywhere.
    if not driver and (task == "run" or name == "tensorrt"):
        missing.append("no NVIDIA driver here")
    if task == "run" and not any(map(version_of, ("pycuda", "cuda-bindings"))):
        missing.append("no CUDA binding (pycuda or cuda-python)")
        extra = "tensorrt" if name == "tensorrt" else "rtx"
        # On a Jetson the extra would bring a TensorRT beside JetPack's own.
        what = f"'lgvit-edge[{extra}]'" if jetson is None else "cuda-python"
        cures.append(f"run: pip install {what}")
    note = f"{module} {getattr(loaded, '__version__', '')}".rstrip()
    if missing:
        note = "; ".join(dict.fromkeys(missing + cures))
    return Check(f"{name} ({task} engines)", not missing, note)
