"""Collects what ``lgvit-edge doctor`` shows: packages, working backends, automatic choices."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lgvit_edge import __version__
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.bundle.inspection import evidence_records
from lgvit_edge.machine import wheels
from lgvit_edge.machine.environment import environment
from lgvit_edge.machine.gpu import find_gpu, find_gpus
from lgvit_edge.machine.jetson import Jetson, detect
from lgvit_edge.machine.power import find_meters
from lgvit_edge.machine.preflight import preflight
from lgvit_edge.runtime.backends.base import ChainOptions, Package
from lgvit_edge.runtime.backends.registry import AUTO, backends
from lgvit_edge.runtime.precision import bundle_policy
from lgvit_edge.runtime.selection import choose, known_choices

# Packages that no backend needs.
_OTHERS = (
    Package("torch", "export", "export and train"),
    Package("onnx", "export", "export"),
    Package("onnxscript", "export", "export"),
    Package("safetensors", "export", "read and write .safetensors"),
    Package("huggingface_hub", "hub", "backbones by name"),
    Package("accelerate", "train", "training"),
    Package("scikit-learn", "train", "the demo's digits"),
    Package("opencv-python-headless", "camera", "read USB cameras, draw answers"),
    Package("av", "camera", "read network cameras and video files"),
    Package("paho-mqtt", "camera", "answers to MQTT"),
    Package("starlette", "camera", "the live page"),
    Package("uvicorn", "camera", "the live page"),
    Package("optuna", "tune", "search operating points"),
    Package("pyarrow", "parquet", "answers of folders as Parquet"),
    Package("ray", "ray", "folders on several machines"),
    Package("tritonclient", "upstream", "a server that goes on with unsure images"),
    Package("matplotlib", "report", "pictures"),
    Package("Jinja2", "report", "the page of bench --report"),
    Package("cryptography", "sign", "sign bundles, and ask for signatures"),
)


def examine(
    root: Path = Path("/"),
    engines: Path | None = None,
    backend: str = AUTO,
    options: ChainOptions | None = None,
) -> dict[str, Any]:
    """Return what ``lgvit-edge doctor`` shows, as plain types for JSON.

    System files lie below ``root``. The fastest way to run ``engines`` with a backend and options,
    as for ``Session.open``, is measured anew first, and its evidence of lower precisions is listed.

    Raises:
        BundleError: ``engines`` is not a bundle.
        BackendError: nothing here can run it.
    """
    evidence = []
    if engines is not None:
        bundle = open_bundle(engines)
        policy = bundle_policy(bundle.manifest)
        choose(bundle, backend, options or ChainOptions(), policy, afresh=True)
        evidence = evidence_records(bundle.manifest)
    jetson = detect(root)
    signs = ("proc/driver/nvidia/version", "dev/nvhost-gpu", "dev/nvgpu")
    driver = jetson is not None or any(os.path.exists(root / sign) for sign in signs)
    driver = driver or find_gpu() is not None  # WSL has none of those files
    packages = [package for backend in backends() for package in backend.packages]
    return {
        "lgvit-edge": __version__,
        "machine": _machine(driver),
        "packages": [
            {
                "name": name,
                "version": wheels.installed(name),
                "extra": wheels.extra(extra),
                "for": purpose,
            }
            for name, extra, purpose in (*packages, *_OTHERS)
        ],
        "backends": [c._asdict() for b in backends() for c in b.own_checks(driver, jetson)],
        "jetson": None if jetson is None else _jetson(jetson),
        "power": _power(root),
        "evidence": evidence,
        "choices": [vars(choice) for choice in known_choices()],
    }


def _machine(driver: bool) -> dict[str, Any]:
    machine = environment()
    machine.pop("packages")
    gpus = [
        f"cuda:{index} {gpu.name}, {gpu.memory / 1e9:.1f} GB, compute capability "
        f"{gpu.compute_capability}, CUDA {gpu.driver}"
        for index, gpu in enumerate(find_gpus())
    ]
    return machine | {"gpus": gpus, "nvidia_driver": driver}


def _power(root: Path) -> dict[str, Any]:
    meters, notes = find_meters(root)
    told = [{"name": m.name, "source": m.source, "covers": m.covers} for m in meters]
    return {"meters": told, "notes": notes}


def _jetson(jetson: Jetson) -> dict[str, Any]:
    return {
        "model": jetson.model,
        "l4t": jetson.l4t,
        "jetpack": jetson.jetpack.name if jetson.jetpack else None,
        "tensorrt": jetson.tensorrt,
        "power_mode": jetson.power_mode,
        "clocks_locked": jetson.clocks_locked,
        "memory_gb": jetson.memory_gb,
        "available_gb": jetson.available_gb,
        "findings": [asdict(finding) for finding in preflight(jetson)],
    }
