"""Jetson boards: what their system files tell, and what each JetPack contains.

All files are read below a root that tests replace. A missing or malformed value is unknown (None)
and never an error, because a diagnosis must work on a broken system.

Containers hide most of the files: the device tree is masked (ultralytics#18449). There the driver
tells that it is a Jetson. jetson-containers mounts ``/etc/nv_tegra_release`` and
``/tmp/nv_jetson_model``.
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from lgvit_edge.machine.container import memory_limit, read_system_file
from lgvit_edge.machine.gpu import find_gpu

# Highest ONNX opset by TensorRT version. The 8.5 parser has no LayerNormalization (opset 17), and
# opset 23 turns attention into one operator, which parsers have since 10.14.
_OPSETS = (((10, 14), 23), ((10, 9), 22), ((10, 0), 20), ((8, 6), 17), ((), 16))
# Compute capabilities of Xavier, Orin and Thor (10.1 until CUDA 12, 11.0 since 13). Other
# integrated GPUs beside an ARM processor, such as that of DGX Spark (12.1), are no Jetsons.
_CAPABILITIES = ("7.2", "8.7", "10.1", "11.0")
# "tensorrt" is the metapackage; the libraries alone are enough to run.
_PACKAGES = r"^Package: (tensorrt|libnvinfer\d+|libnvinfer-bin)$"


@dataclass(frozen=True)
class JetPack:
    """One JetPack release: the TensorRT and Python it has."""

    name: str  # NVIDIA's number of it
    first: tuple[int, int]  # oldest L4T release that belongs to it
    last: tuple[int, int]  # newest such release; a third number (36.4.3) does not matter
    # Versions that belong to it; the first is the one in its image
    tensorrt: tuple[str, ...]
    python: str  # version of the system's Python, for which its ``tensorrt`` module is built

    @property
    def major(self) -> int:
        """Return the major version, such as 6."""
        return int(self.name[0])

    @property
    def opset(self) -> int:
        """Return the highest ONNX opset that its TensorRT reads."""
        return highest_opset(self.tensorrt[0])

    @property
    def strongly_typed(self) -> bool:
        """Return whether its TensorRT computes in the types of a graph."""
        return numbers(self.tensorrt[0]) >= (10,)

    @property
    def precisions(self) -> tuple[str, ...]:
        """Return the precisions that its TensorRT can build."""
        return allowed_precisions(self.tensorrt[0])


# 7.0 and 7.1: which 10.x exactly is not settled. 7.2.2 also takes 11.4.1, never 11.0 to 11.4.0.
JETPACKS = (
    JetPack("5", (35, 2), (35, 6), ("8.5",), "3.8"),
    JetPack("6.0", (36, 3), (36, 3), ("8.6",), "3.10"),
    JetPack("6.1/6.2", (36, 4), (36, 5), ("10.3",), "3.10"),
    JetPack("7.0/7.1", (38, 2), (38, 4), ("10.13",), "3.12"),
    JetPack("7.2", (39, 2), (39, 2), ("10.16", "11.4"), "3.12"),
)


@dataclass(frozen=True)
class Jetson:
    """A Jetson board as its system files describe it; None means unknown."""

    model: str | None  # such as ``NVIDIA Jetson Orin Nano Developer Kit``
    l4t: str | None  # release of Jetson Linux, such as ``36.4.3``
    tensorrt: str | None  # version of the installed packages
    # Versions of Python with a ``tensorrt`` module in the system's dist-packages, oldest first; an
    # empty string stands for a folder that names no version
    pythons: tuple[str, ...]
    mode: int | None  # number of the power mode
    modes: tuple[tuple[int, str], ...]  # the power modes' names by number
    clocks_locked: bool | None  # whether CPU and GPU keep their highest clocks
    memory_gb: float | None  # in all
    available_gb: float | None  # memory that a program could have now, in this container
    dla_compiler: bool  # whether libnvdla_compiler.so is there

    @property
    def jetpack(self) -> JetPack | None:
        """Return the JetPack that the board's release belongs to; None if unknown."""
        release = numbers(self.l4t)[:2]
        return next((pack for pack in JETPACKS if pack.first <= release <= pack.last), None)

    @property
    def power_mode(self) -> str | None:
        """Return the name of the power mode, or its number if the name is unknown."""
        return None if self.mode is None else dict(self.modes).get(self.mode, str(self.mode))


def detect(root: Path = Path("/")) -> Jetson | None:
    """Return the Jetson board that this machine is; None if it is not a Jetson."""
    places = (root / "proc/device-tree/model", root / "tmp/nv_jetson_model")
    model = next(filter(None, (read_system_file(p).strip("\0 \n") for p in places)), None)
    release = root / "etc/nv_tegra_release"
    named = re.search("jetson|tegra", model or "", re.IGNORECASE)
    if not os.path.exists(release) and not named and not _driver_says_so():
        return None
    number = r"R(\d+)\s*\(release\),\s*REVISION:\s*(\d+(?:\.\d+)*)"
    l4t = re.search(number, read_system_file(release))
    mode = re.search(r"pmode:\s*(\d{1,4})\b", read_system_file(root / "var/lib/nvpmodel/status"))
    listed = r"^\s*<\s*POWER_MODEL\s+ID=(\d{1,4})\s+NAME=([^\s>]+)"
    modes = re.findall(listed, read_system_file(root / "etc/nvpmodel.conf"), re.MULTILINE)
    modules = (root / "usr/lib").glob("python3*/dist-packages/tensorrt")
    names = {module.parents[1].name.removeprefix("python") for module in modules}
    libraries = root / "usr/lib/aarch64-linux-gnu"
    compilers = [libraries / folder / "libnvdla_compiler.so" for folder in ("tegra", "nvidia")]
    memory = read_system_file(root / "proc/meminfo")
    available, limit = _gigabytes(memory, "MemAvailable"), memory_limit(root)
    if available is not None and limit is not None:
        available = min(available, round(limit / 1e9, 1))
    return Jetson(
        model=model,
        l4t=f"{l4t[1]}.{l4t[2]}" if l4t else None,
        tensorrt=_installed(read_system_file(root / "var/lib/dpkg/status")),
        pythons=tuple(sorted(("" if name == "3" else name for name in names), key=numbers)),
        mode=int(mode[1]) if mode else None,
        modes=tuple((int(number), name) for number, name in modes),
        clocks_locked=_clocks_locked(root),
        memory_gb=_gigabytes(memory, "MemTotal"),
        available_gb=available,
        dla_compiler=any(map(os.path.exists, compilers)),
    )


def highest_opset(tensorrt: str) -> int:
    """Return the highest ONNX opset whose operators, as used here, this TensorRT version reads."""
    return next(opset for first, opset in _OPSETS if numbers(tensorrt)[:2] >= first)


def allowed_precisions(tensorrt: str) -> tuple[str, ...]:
    """Return the precisions this TensorRT builds; int8 needs opset 19 for its float16 scales."""
    return ("fp32", "fp16", "int8") if highest_opset(tensorrt) >= 19 else ("fp32", "fp16")


def numbers(text: str | None) -> tuple[int, ...]:
    """Parse ``10.3.0.30-1+cuda12.5`` as (10, 3, 0, 30); empty if the text starts with no number."""
    leading = re.match(r"\d{1,9}(?:\.\d{1,9})*", text or "")
    return tuple(int(part) for part in leading[0].split(".")) if leading else ()


def _driver_says_so() -> bool:
    """Return whether the driver has a Jetson's GPU."""
    if platform.machine() != "aarch64" or (gpu := find_gpu()) is None:
        return False
    return gpu.integrated and gpu.compute_capability in _CAPABILITIES


def _gigabytes(meminfo: str, name: str) -> float | None:
    size = re.search(r"^" + name + r":\s*(\d{1,15}) kB", meminfo, re.MULTILINE)
    return round(int(size[1]) * 1024 / 1e9, 1) if size else None


def _installed(status: str) -> str | None:
    """Return the version of the installed TensorRT from dpkg's list."""
    versions = []
    for entry in status.split("\n\n"):
        name = re.search(_PACKAGES, entry, re.MULTILINE)
        number = re.search(r"^Version: (\d+(?:\.\d+)*)", entry, re.MULTILINE)
        if name and number and re.search(r"^Status: \S+ ok installed$", entry, re.MULTILINE):
            versions.append((name[1] == "tensorrt", numbers(number[1]), number[1]))
    return max(versions)[2] if versions else None


def gpu_clocks(root: Path) -> list[Path]:
    """Return the folders that hold the clocks of a Jetson's GPU: ``cur_freq``, ``max_freq``."""
    devices = sorted((root / "sys/class/devfreq").glob("*"))
    # gpu-nvd is the video engine of Thor.
    return [d for d in devices if re.search("gpu|ga10b|gv11b", d.name) and "nvd" not in d.name]


def _clocks_locked(root: Path) -> bool | None:
    """Return whether the lowest and highest clocks of CPU and GPU are equal; None if unknown."""
    cpu = root / "sys/devices/system/cpu/cpu0/cpufreq"
    pairs = [(cpu / "scaling_min_freq", cpu / "scaling_max_freq")]
    pairs += [(device / "min_freq", device / "max_freq") for device in gpu_clocks(root)]
    ranges = [(read_system_file(low), read_system_file(high)) for low, high in pairs]
    ranges = [(low, high) for low, high in ranges if low and high]
    return all(low == high for low, high in ranges) if ranges else None
