"""Checks for ``doctor`` what each backend can do on this machine, without running a bundle."""

from __future__ import annotations

from lgvit_edge._support.optional import require, try_import
from lgvit_edge.errors import BackendError, MissingDependency
from lgvit_edge.machine import wheels
from lgvit_edge.machine.environment import version_of
from lgvit_edge.machine.jetson import Jetson
from lgvit_edge.machine.openvino import devices, shared_core
from lgvit_edge.machine.preflight import explain_import_error
from lgvit_edge.machine.tensorrt import TensorRT
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
    found = ", ".join(devices(shared_core()))
    number = openvino.__version__.split("-")[0]
    return [Check("openvino", bool(found), f"openvino {number} on {found}")]


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
    fault = wheels.misfit("onnxruntime-gpu", jetson) if device == "cuda" else None
    if device == "cpu" or (driver and fault is None and has_cuda()):
        slower = "" if can_share(ort) else ", with private thread pools: 1.23 and newer are faster"
        return Check(name, True, f"onnxruntime {ort.__version__}{slower}")
    note = "this onnxruntime has no CUDA provider"
    if not driver:
        note = "no NVIDIA driver here"
    elif fault is not None:
        note = fault
    elif jetson is None:
        note += (
            f"; run: pip uninstall onnxruntime && pip install 'lgvit-edge[{wheels.extra('gpu')}]'"
        )
    else:
        note += ", and PyPI has none for JetPack before 7.2; use tensorrt or the cpu"
    return Check(name, False, note)


def _engines(name: str, task: str, driver: bool, jetson: Jetson | None) -> Check:
    module = name.replace("-", "_")
    loaded = try_import(module)
    missing, cures = [], []

    def lacks(fault: str | None) -> None:
        if fault is not None:
            what, _, cure = fault.rpartition("; ")
            missing.append(what)
            cures.append(cure)

    if isinstance(loaded, ImportError):
        lacks(explain_import_error(loaded, jetson))
    elif jetson is not None and name == "tensorrt-rtx" and task == "run":
        lacks("TensorRT-RTX does not support Jetson; use JetPack's TensorRT")
    # TensorRT measures candidates on the GPU it builds for; TensorRT-RTX leaves that to the first
    # run and builds anywhere.
    if not driver and (task == "run" or name == "tensorrt"):
        missing.append("no NVIDIA driver here")
    elif not missing and (fault := wheels.misfit(name, jetson)) and task == "run":
        lacks(fault)
    if task == "run" and not any(map(version_of, ("pycuda", "cuda-bindings"))):
        # On a Jetson the extra would bring a TensorRT beside JetPack's own.
        extra = wheels.extra("tensorrt" if name == "tensorrt" else "rtx")
        what = f"'lgvit-edge[{extra}]'" if jetson is None else wheels.cuda_python()
        lacks(f"no CUDA binding (pycuda or cuda-python); run: pip install {what}")
    elif task == "run" and driver and version_of("pycuda") is None:
        lacks(wheels.misfit("cuda-bindings", jetson))
    note = f"{module} {getattr(loaded, '__version__', '')}".rstrip()
    if not missing:  # that a module can be imported says little: its libraries start here
        try:
            TensorRT(name).make("Builder" if task == "build" else "Runtime")
        except (BackendError, MissingDependency) as error:
            missing.append(str(error).removesuffix("; run: lgvit-edge doctor"))
    if missing:
        note = "; ".join(dict.fromkeys(missing + cures))
    return Check(f"{name} ({task} engines)", not missing, note)
