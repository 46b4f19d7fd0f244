"""What ``lgvit-edge doctor`` finds: packages, what can run here, what to install."""

from __future__ import annotations

import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console

from lgvit_edge import __version__
from lgvit_edge._optional import require
from lgvit_edge._terminal import table
from lgvit_edge.errors import MissingDependency

# Distribution, extra that installs it, what it is for.
PACKAGES = (
    ("onnxruntime", "cpu", "run bundles on the CPU"),
    ("onnxruntime-gpu", "gpu", "run bundles on an NVIDIA GPU"),
    ("torch", "export", "export and train"),
    ("onnx", "export", "export"),
    ("onnxscript", "export", "export"),
    ("safetensors", "export", "read and write .safetensors"),
    ("scikit-learn", "train", "the demo's digits"),
)


def examine() -> dict[str, Any]:
    """Everything ``print_examination`` shows, as JSON."""
    packages = [
        {"name": name, "version": _version(name), "extra": extra, "for": purpose}
        for name, extra, purpose in PACKAGES
    ]
    return {
        "lgvit-edge": __version__,
        "machine": _machine(),
        "packages": packages,
        "backends": [_onnxruntime("cpu"), _onnxruntime("cuda")],
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    from lgvit_edge.benchmarks.environment import environment

    found = environment()
    found.pop("packages")
    return found | {"gpus": _gpus()}


def _gpus() -> list[str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        answer = subprocess.run(
            [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


def _onnxruntime(device: str) -> dict[str, Any]:
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
    extra = {"cpu": "cpu", "cuda": "gpu"}[device]
    name = f"onnxruntime on {device}"
    try:
        ort = require("onnxruntime", extra=extra)
    except MissingDependency as error:
        return {"name": name, "runs": False, "note": str(error)}
    driver = device == "cpu" or Path("/proc/driver/nvidia/version").exists()
    if provider in ort.get_available_providers() and driver:
        return {"name": name, "runs": True, "note": f"onnxruntime {ort.__version__}"}
    note = "this onnxruntime has no CUDA provider; pip uninstall onnxruntime && "
    note += "pip install 'lgvit-edge[gpu]'"
    if not driver:
        note = "no NVIDIA driver here"
    return {"name": name, "runs": False, "note": note}


def print_examination(found: dict[str, Any], console: Console) -> None:
    """The same for people."""
    machine = found["machine"]
    console.print(
        f"[bold]lgvit-edge {found['lgvit-edge']}[/], Python {machine['python']}, "
        f"{machine['system']}\n{machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gb']} GB; GPU: {', '.join(machine['gpus']) or 'none found'}",
        highlight=False,
    )
    packages = table("package", "version", "for", "to install")
    installed = {row["name"] for row in found["packages"] if row["version"]}
    # The two builds of onnxruntime install the same files: having one, nobody needs the other.
    twins = {"onnxruntime", "onnxruntime-gpu"}
    enough = installed | (twins if installed & twins else set())
    for row in found["packages"]:
        hint = "" if row["name"] in enough else f"pip install 'lgvit-edge[{row['extra']}]'"
        packages.add_row(row["name"], row["version"] or "[dim]-[/]", row["for"], _plain(hint))
    console.print(packages)
    backends = table("backend", "runs here", "")
    for row in found["backends"]:
        runs = "[green]yes[/]" if row["runs"] else "[yellow]no[/]"
        backends.add_row(row["name"], runs, _plain(row["note"]))
    console.print(backends)
    if not any(row["runs"] for row in found["backends"]):
        console.print("nothing can run a bundle here; run: pip install 'lgvit-edge\\[cpu]'")


def _plain(text: str) -> str:
    return text.replace("[", "\\[")
