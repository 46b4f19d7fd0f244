"""What ``lgvit-edge doctor`` finds: packages, what can run here, what to install."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lgvit_edge import __version__
from lgvit_edge._support.optional import require
from lgvit_edge._support.terminal import console, table
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.cli.options import AsJson
from lgvit_edge.errors import MissingDependency
from lgvit_edge.machine.gpu import find_gpu, find_gpus
from lgvit_edge.machine.jetson import Jetson, detect
from lgvit_edge.machine.openvino import shared_core
from lgvit_edge.machine.preflight import explain_import_error, preflight, try_import
from lgvit_edge.runtime.backends.registry import ChainOptions
from lgvit_edge.runtime.selection import OVERRIDE, choose, known_choices

# Distribution, extra that installs it, what it is for.
PACKAGES = (
    ("onnxruntime", "cpu", "run bundles on the CPU"),
    ("onnxruntime-gpu", "gpu", "run bundles on an NVIDIA GPU"),
    ("openvino", "openvino", "run bundles"),
    ("tensorrt", "tensorrt", "build and run engines"),
    ("tensorrt-rtx", "rtx", "engines for RTX GPUs"),
    ("pycuda", "pycuda", "run engines"),
    ("cuda-bindings", "rtx", "run engines (cuda-python)"),
    ("torch", "export", "export and train"),
    ("onnx", "export", "export"),
    ("onnxscript", "export", "export"),
    ("safetensors", "export", "read and write .safetensors"),
    ("scikit-learn", "train", "the demo's digits"),
    ("optuna", "tune", "search operating points"),
    ("matplotlib", "report", "pictures"),
    ("Jinja2", "report", "the page of bench --report"),
)
# Any one of a set is enough. The two builds of onnxruntime even install the same files.
EITHER = ({"onnxruntime", "onnxruntime-gpu"}, {"pycuda", "cuda-bindings"})


def examine(root: Path = Path("/"), engines: Path | None = None) -> dict[str, Any]:
    """Everything ``print_examination`` shows, as JSON.

    Args:
        root: where the system's files lie, for tests.
        engines: a bundle whose fastest backend is measured anew first.

    Raises:
        BundleError: it is none.
        BackendError: nothing here can run it.
    """
    if engines is not None:
        choose(open_bundle(engines), "auto", ChainOptions(), afresh=True)
    jetson = detect(root)
    signs = ("proc/driver/nvidia/version", "dev/nvhost-gpu", "dev/nvgpu")
    driver = jetson is not None or any(os.path.exists(root / sign) for sign in signs)
    driver = driver or find_gpu() is not None  # WSL has none of those files
    packages = [
        {"name": name, "version": _version(name), "extra": extra, "for": purpose}
        for name, extra, purpose in PACKAGES
    ]
    return {
        "lgvit-edge": __version__,
        "machine": _machine() | {"nvidia_driver": driver},
        "packages": packages,
        "backends": [
            _onnxruntime("cpu", driver, jetson),
            _onnxruntime("cuda", driver, jetson),
            _openvino(),
            _engines("tensorrt", "build", driver, jetson),
            _engines("tensorrt", "run", driver, jetson),
            _engines("tensorrt-rtx", "build", driver, jetson),
            _engines("tensorrt-rtx", "run", driver, jetson),
        ],
        "jetson": None if jetson is None else _jetson(jetson),
        "choices": [vars(choice) for choice in known_choices()],
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    from lgvit_edge.machine.environment import environment

    found = environment()
    found.pop("packages")
    return found | {"gpus": _gpus()}


def _gpus() -> list[str]:
    return [
        f"{gpu.name}, {gpu.memory / 1e9:.1f} GB, compute capability {gpu.compute_capability}, "
        f"CUDA {gpu.driver}"
        for gpu in find_gpus()
    ]


def _onnxruntime(device: str, driver: bool, jetson: Jetson | None) -> dict[str, Any]:
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
    extra = {"cpu": "cpu", "cuda": "gpu"}[device]
    name = f"onnxruntime on {device}"
    try:
        ort = require("onnxruntime", extra=extra)
    except MissingDependency as error:
        return {"name": name, "runs": False, "note": str(error)}
    driver = driver or device == "cpu"
    if provider in ort.get_available_providers() and driver:
        return {"name": name, "runs": True, "note": f"onnxruntime {ort.__version__}"}
    note = "this onnxruntime has no CUDA provider; run: pip uninstall onnxruntime && "
    note += "pip install 'lgvit-edge[gpu]'"
    if jetson is not None:
        note = "this onnxruntime has no CUDA provider, and PyPI has none for JetPack before 7.2; "
        note += "use tensorrt or the cpu"
    if not driver:
        note = "no NVIDIA driver here"
    return {"name": name, "runs": False, "note": note}


def _openvino() -> dict[str, Any]:
    try:
        openvino = require("openvino", extra="openvino")
    except MissingDependency as error:
        return {"name": "openvino", "runs": False, "note": str(error)}
    devices = ", ".join(shared_core().available_devices).lower()
    number = openvino.__version__.split("-")[0]
    return {"name": "openvino", "runs": bool(devices), "note": f"openvino {number} on {devices}"}


def _engines(name: str, task: str, driver: bool, jetson: Jetson | None) -> dict[str, Any]:
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
    if task == "run" and not any(map(_version, ("pycuda", "cuda-bindings"))):
        missing.append("no CUDA binding (pycuda or cuda-python)")
        extra = "tensorrt" if name == "tensorrt" else "rtx"
        # On a Jetson the extra would bring a TensorRT beside JetPack's own.
        what = f"'lgvit-edge[{extra}]'" if jetson is None else "cuda-python"
        cures.append(f"run: pip install {what}")
    note = f"{module} {getattr(loaded, '__version__', '')}".rstrip()
    if missing:
        note = "; ".join(dict.fromkeys(missing + cures))
    return {"name": f"{name} ({task} engines)", "runs": not missing, "note": note}


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


def print_examination(found: dict[str, Any], console: Console) -> None:
    """The same for people."""
    machine = found["machine"]
    console.print(
        f"[bold]lgvit-edge {found['lgvit-edge']}[/], Python {machine['python']}, "
        f"{machine['system']}\n{machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gb']} GB; GPU: {'; '.join(machine['gpus']) or 'none found'}",
        highlight=False,
    )
    packages = table("package", "version", "for", "to install")
    installed = {row["name"] for row in found["packages"] if row["version"]}
    enough = installed.union(*(names for names in EITHER if installed & names))
    on_jetson = {"tensorrt": "comes with JetPack", "tensorrt-rtx": "not for Jetson"}
    packages.columns[-1].no_wrap = True  # a command, to be copied
    for row in found["packages"]:
        hint = "" if row["name"] in enough else f"pip install 'lgvit-edge[{row['extra']}]'"
        if hint and found["jetson"]:
            hint = on_jetson.get(row["name"], hint)
        packages.add_row(row["name"], row["version"] or "[dim]-[/]", row["for"], _plain(hint))
    console.print(packages)
    backends = table("backend", "runs here", "")
    for row in found["backends"]:
        runs = "[green]yes[/]" if row["runs"] else "[yellow]no[/]"
        backends.add_row(row["name"], runs, _plain(row["note"].replace("; run: ", "\nrun: ")))
    console.print(backends)
    if not machine["nvidia_driver"]:
        console.print(
            "No NVIDIA driver: a PC with an NVIDIA GPU needs one, on Ubuntu: "
            "sudo ubuntu-drivers install",
            highlight=False,
            soft_wrap=True,
        )
    if found["jetson"]:
        _print_jetson(found["jetson"], console)
    _print_choices(found["choices"], console)
    if not any(row["runs"] for row in found["backends"]):
        console.print("nothing can run a bundle here; run: pip install 'lgvit-edge\\[cpu]'")


def _print_jetson(found: dict[str, Any], console: Console) -> None:
    def known(name: str) -> str:
        return "unknown" if found[name] is None else str(found[name])

    clocks = {None: "unknown", True: "locked", False: "not locked"}[found["clocks_locked"]]
    console.print(f"[bold]{_plain(known('model'))}[/]", highlight=False)
    memory = "memory unknown"
    if found["available_gb"] is not None:
        memory = f"{found['available_gb']} of {known('memory_gb')} GB of memory available"
    lines = [
        f"L4T {known('l4t')}, JetPack {known('jetpack')}, TensorRT {known('tensorrt')}",
        f"power mode {known('power_mode')}, clocks {clocks}, {memory}",
    ]
    for finding in found["findings"]:
        lines.append(f"{finding['level']}: {finding['text']}")
        if finding["cure"]:
            lines.append(f"  {finding['cure']}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _print_choices(choices: list[dict[str, Any]], console: Console) -> None:
    """What ``backend="auto"`` has measured here."""
    if chosen := os.environ.get(OVERRIDE):
        console.print(f"{OVERRIDE} makes every session run on {_plain(chosen)}")
    if not choices:
        return
    made = table("bundle", "auto runs it on", "ms per image, measured", "when (UTC)")
    for choice in choices:
        name = " ".join(filter(None, (choice["backend"], choice["hint"])))
        times = ", ".join(f"{n} {ms:.2f}" for n, ms in sorted(choice["measured"].items()))
        refused = [f"{n}: {_plain(why)}" for n, why in choice["refused"].items()]
        made.add_row(
            _plain(choice["bundle"]), name, "\n".join([times, *refused]), choice["date"][:16]
        )
    console.print(made)


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


def doctor(
    engines: Annotated[
        Path | None, typer.Option(help="A bundle: measure anew which backend is fastest for it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what is installed, what can run here, what to install, and what backends were chosen."""
    found = examine(engines=engines)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        print_examination(found, console)
