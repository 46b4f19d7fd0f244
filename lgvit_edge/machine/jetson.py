"""What a Jetson's own files say of it, and what each JetPack brings.

Everything is read below a root that tests replace. What is missing or malformed is unknown (None),
never an error: a diagnosis has to work where things are broken.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

# Highest ONNX opset by TensorRT version. The 8.5 parser has no LayerNormalization (opset 17), and
# opset 23 turns attention into one operator, which parsers have since 10.14.
_OPSETS = (((10, 14), 23), ((10, 9), 22), ((10, 0), 20), ((8, 6), 17), ((), 16))
# "tensorrt" names the whole; the libraries alone are enough to run.
_PACKAGES = r"^Package: (tensorrt|libnvinfer\d+|libnvinfer-bin)$"


@dataclass(frozen=True)
class JetPack:
    """What a JetPack brings.

    Attributes:
        name: as NVIDIA numbers it.
        first: oldest L4T release that belongs to it.
        last: newest; a third number (36.4.3) does not matter.
        tensorrt: versions that belong to it; the first is the one in its image.
        python: of the system, for which its ``tensorrt`` module is built.
        devices: families it runs on.
    """

    name: str
    first: tuple[int, int]
    last: tuple[int, int]
    tensorrt: tuple[str, ...]
    python: str
    devices: tuple[str, ...]

    @property
    def major(self) -> int:
        """Such as 6."""
        return int(self.name[0])

    @property
    def opset(self) -> int:
        """Highest ONNX operator set that its TensorRT reads."""
        return highest_opset(self.tensorrt[0])

    @property
    def precisions(self) -> tuple[str, ...]:
        """What its TensorRT builds from our graphs."""
        return allowed_precisions(self.tensorrt[0])


# 7.0 and 7.1: which 10.x exactly is not settled. 7.2.2 also takes 11.4.1, never 11.0 to 11.4.0.
JETPACKS = (
    JetPack("5", (35, 2), (35, 6), ("8.5",), "3.8", ("Xavier", "Orin")),
    JetPack("6.0", (36, 3), (36, 3), ("8.6",), "3.10", ("Orin",)),
    JetPack("6.1/6.2", (36, 4), (36, 5), ("10.3",), "3.10", ("Orin",)),
    JetPack("7.0/7.1", (38, 2), (38, 4), ("10.13",), "3.12", ("Thor",)),
    JetPack("7.2", (39, 2), (39, 2), ("10.16", "11.4"), "3.12", ("Thor", "Orin")),
)


@dataclass(frozen=True)
class Jetson:
    """What was found of a board; None is unknown.

    Attributes:
        model: such as ``NVIDIA Jetson Orin Nano Developer Kit``.
        l4t: release of Jetson Linux, such as ``36.4.3``.
        tensorrt: version of the installed packages.
        pythons: versions of Python with a ``tensorrt`` module in the system's dist-packages,
            oldest first; an empty string stands for a folder that names no version.
        mode: number of the power mode.
        modes: the power modes' names by number.
        clocks_locked: whether CPU and GPU keep their highest clocks.
        memory_gb: in all.
        available_gb: memory that a program could have now.
        dla_compiler: whether libnvdla_compiler.so is there.
    """

    model: str | None
    l4t: str | None
    tensorrt: str | None
    pythons: tuple[str, ...]
    mode: int | None
    modes: tuple[tuple[int, str], ...]
    clocks_locked: bool | None
    memory_gb: float | None
    available_gb: float | None
    dla_compiler: bool

    @property
    def jetpack(self) -> JetPack | None:
        """The JetPack that this release belongs to, where it is a known one."""
        release = numbers(self.l4t)[:2]
        return next((known for known in JETPACKS if known.first <= release <= known.last), None)

    @property
    def power_mode(self) -> str | None:
        """Name of the power mode, or its number where the names are unknown."""
        return None if self.mode is None else dict(self.modes).get(self.mode, str(self.mode))


def detect(root: Path = Path("/")) -> Jetson | None:
    """What board this is; None where it is no Jetson."""
    model = _read(root / "proc/device-tree/model").strip("\0 \n") or None
    release = root / "etc/nv_tegra_release"
    if not os.path.exists(release) and not re.search("jetson|tegra", model or "", re.IGNORECASE):
        return None
    l4t = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*(\d+(?:\.\d+)*)", _read(release))
    mode = re.search(r"pmode:\s*(\d{1,4})\b", _read(root / "var/lib/nvpmodel/status"))
    modes = re.findall(
        r"^\s*<\s*POWER_MODEL\s+ID=(\d{1,4})\s+NAME=([^\s>]+)",
        _read(root / "etc/nvpmodel.conf"),
        re.MULTILINE,
    )
    modules = (root / "usr/lib").glob("python3*/dist-packages/tensorrt")
    names = {module.parents[1].name.removeprefix("python") for module in modules}
    libraries = root / "usr/lib/aarch64-linux-gnu"
    memory = _read(root / "proc/meminfo")
    return Jetson(
        model=model,
        l4t=f"{l4t[1]}.{l4t[2]}" if l4t else None,
        tensorrt=_installed(_read(root / "var/lib/dpkg/status")),
        pythons=tuple(sorted(("" if name == "3" else name for name in names), key=numbers)),
        mode=int(mode[1]) if mode else None,
        modes=tuple((int(number), name) for number, name in modes),
        clocks_locked=_clocks_locked(root),
        memory_gb=_gigabytes(memory, "MemTotal"),
        available_gb=_gigabytes(memory, "MemAvailable"),
        dla_compiler=any(
            os.path.exists(libraries / folder / "libnvdla_compiler.so")
            for folder in ("tegra", "nvidia")
        ),
    )


def highest_opset(tensorrt: str) -> int:
    """Highest ONNX operator set that this version of TensorRT reads with all we use of it."""
    return next(opset for first, opset in _OPSETS if numbers(tensorrt)[:2] >= first)


def allowed_precisions(tensorrt: str) -> tuple[str, ...]:
    """What this version of TensorRT builds: int8 graphs have float16 scales, from opset 19 on."""
    return ("fp32", "fp16", "int8") if highest_opset(tensorrt) >= 19 else ("fp32", "fp16")


def numbers(text: str | None) -> tuple[int, ...]:
    """``10.3.0.30-1+cuda12.5`` as (10, 3, 0, 30); empty where no number leads."""
    leading = re.match(r"\d{1,9}(?:\.\d{1,9})*", text or "")
    return tuple(int(part) for part in leading[0].split(".")) if leading else ()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _gigabytes(meminfo: str, name: str) -> float | None:
    found = re.search(r"^" + name + r":\s*(\d{1,15}) kB", meminfo, re.MULTILINE)
    return round(int(found[1]) * 1024 / 1e9, 1) if found else None


def _installed(status: str) -> str | None:
    """Version of the installed TensorRT, from dpkg's list."""
    found = []
    for entry in status.split("\n\n"):
        name = re.search(_PACKAGES, entry, re.MULTILINE)
        number = re.search(r"^Version: (\d+(?:\.\d+)*)", entry, re.MULTILINE)
        if name and number and re.search(r"^Status: \S+ ok installed$", entry, re.MULTILINE):
            found.append((name[1] == "tensorrt", numbers(number[1]), number[1]))
    return max(found)[2] if found else None


def _clocks_locked(root: Path) -> bool | None:
    """Whether lowest and highest clock are the same, for the CPU and the GPU."""
    cpu = root / "sys/devices/system/cpu/cpu0/cpufreq"
    ranges = [(_read(cpu / "scaling_min_freq"), _read(cpu / "scaling_max_freq"))]
    for device in sorted((root / "sys/class/devfreq").glob("*")):
        # gpu-nvd is the video engine of Thor.
        if re.search("gpu|ga10b|gv11b", device.name) and "nvd" not in device.name:
            ranges.append((_read(device / "min_freq"), _read(device / "max_freq")))
    known = [(low.strip(), high.strip()) for low, high in ranges if low.strip() and high.strip()]
    return all(low == high for low, high in known) if known else None
