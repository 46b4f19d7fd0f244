"""Checks of a Jetson before building: its JetPack, what it supports, and known problems."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lgvit_edge._support.optional import try_import
from lgvit_edge.machine import wheels
from lgvit_edge.machine.environment import version_of
from lgvit_edge.machine.jetson import (
    JETPACKS,
    JetPack,
    Jetson,
    allowed_precisions,
    highest_opset,
    numbers,
)

LOW_MEMORY_GB = 2.0

_APT = "run: sudo apt install tensorrt python3-libnvinfer"
_REINSTALL = "run: sudo apt install --reinstall tensorrt python3-libnvinfer"
_VENV = "run: {} -m venv --system-site-packages .venv"
_UNINSTALL = "run: pip uninstall -y tensorrt tensorrt_cu1{2,3}{,_libs,_bindings}"
_COMPARE = "compare accuracy: lgvit-edge bench --engines OUT --data DIR"


@dataclass(frozen=True)
class Finding:
    """One result of a check: its level, its text, and a cure if something is wrong."""

    level: Literal["ok", "note", "problem"]
    text: str
    cure: str = ""


def fits(
    jetpack: JetPack, *, opset: int, precision: str, tensorrt: str | None = None
) -> list[Finding]:
    """Return the problems of building a bundle on a JetPack; empty if there are none.

    ``opset`` and ``precision`` are those of the bundle's graphs; ``tensorrt`` is the installed
    version, if it is not JetPack's own.
    """
    version = tensorrt or jetpack.tensorrt[0]
    where = f"TensorRT {version} on JetPack {jetpack.name}"
    highest, allowed = highest_opset(version), allowed_precisions(version)
    if numbers(version) < (8, 6):
        return [_too_old(where, None)]
    findings = []
    if opset > highest and precision in allowed:
        text = f"{where} reads ONNX up to opset {highest}, the bundle has {opset}"
        findings.append(Finding("problem", text, f"run: lgvit-edge export ... --opset {highest}"))
    if precision not in allowed:
        text = f"{where} builds {', '.join(allowed)}, the bundle is {precision}"
        if precision == "int8":
            text += " (its float16 scales need opset 19)"
        findings.append(Finding("problem", text, "run: lgvit-edge export ... --precision fp16"))
    elif precision == "fp16" and numbers(version) < (10,):
        text = f"{where} has no strong typing: it chooses precisions itself and may lose accuracy"
        findings.append(Finding("note", text, _COMPARE))
    return findings


def preflight(jetson: Jetson) -> list[Finding]:
    """Return what to know before building or measuring on this Jetson; tries ``tensorrt``."""
    return [_release(jetson), *_tensorrt(jetson), *_speed(jetson)]


def explain_import_error(error: ImportError, jetson: Jetson | None) -> str:
    """Explain why ``tensorrt`` or ``tensorrt_rtx`` cannot be imported, and how to fix it."""
    return "; ".join(_import_failure(error, jetson))


def _release(jetson: Jetson) -> Finding:
    jetpack = jetson.jetpack
    oldest, newest = JETPACKS[0].first, JETPACKS[-1].last
    releases = f"{oldest[0]}.{oldest[1]} to {newest[0]}.{newest[1]}"
    if jetpack is not None:
        text = f"JetPack {jetpack.name} (L4T {jetson.l4t}): expect TensorRT {jetpack.tensorrt[0]}, "
        text += f"Python {jetpack.python}, ONNX up to opset {jetpack.opset}, "
        return Finding("ok", text + ", ".join(jetpack.precisions))
    if jetson.l4t is None:
        text = "the release is unknown: /etc/nv_tegra_release is missing or says something else"
        cure = "run: dpkg-query --show nvidia-l4t-core (in a container: start it with -v "
        cure += "/etc/nv_tegra_release:/etc/nv_tegra_release:ro)"
        return Finding("note", text, cure)
    text = f"L4T {jetson.l4t} is none of the releases known here ({releases})"
    if numbers(jetson.l4t)[:2] < oldest:
        return Finding("problem", text, _way_out(jetson.model))
    cure = f"expect what JetPack {JETPACKS[-1].name} has, and look for a newer lgvit-edge"
    return Finding("note", text, cure)


def _tensorrt(jetson: Jetson) -> Iterator[Finding]:
    loaded = try_import("tensorrt")
    error = loaded if isinstance(loaded, ImportError) else None
    listed = _distribution() or jetson.tensorrt
    version = listed if error else str(getattr(loaded, "__version__", None) or listed or "")
    release, jetpack = numbers(version), jetson.jetpack
    if release and release < (8, 6):
        yield _too_old(f"TensorRT {version}", jetson.model)
        return
    if release >= (11,) and (release < (11, 4, 1) or (jetpack and jetpack.major < 7)):
        text = f"TensorRT {version} does not support this JetPack (11.0 to 11.4.0 support none): "
        text += "leave it to the one that JetPack brings"
        yield Finding("problem", text, _UNINSTALL)
        return
    if error is not None:
        yield Finding("problem", *_import_failure(error, jetson))
    if not release:
        return
    expected = [numbers(supported) for supported in jetpack.tensorrt] if jetpack else []
    if jetpack is None or jetpack.major == 5 or release[:2] in expected:
        if error is None:
            yield Finding("ok", f"TensorRT {version}")
        return
    text = f"TensorRT {version} found, JetPack {jetpack.name} brings {jetpack.tensorrt[0]}"
    if release[:2] < expected[0] and jetpack.major == 7 and not jetson.dla_compiler:
        text += "; builds for JetPack 6 load libnvdla_compiler.so, which is not here"
    if error is None:  # it loads, but this combination is untested
        yield Finding("note", text, _COMPARE)
    else:
        from_pip = release[:3] != numbers(jetson.tensorrt)[:3]
        yield Finding("problem", text, _UNINSTALL if from_pip else _REINSTALL)


def _speed(jetson: Jetson) -> Iterator[Finding]:
    modes = dict(jetson.modes)
    best = max(modes, key=lambda number: _rank(modes[number]), default=None)
    if jetson.mode is not None and best is None and jetson.mode != 0:
        text = f"power mode {jetson.mode}; on most boards 0 is the highest"
        yield Finding("note", text, "run: sudo nvpmodel -m 0")
    elif jetson.mode in modes and best is not None:
        if _rank(modes[jetson.mode]) < _rank(modes[best]):
            text = f"power mode {modes[jetson.mode]}, the highest is {modes[best]}"
            yield Finding("note", text, f"run: sudo nvpmodel -m {best}")
    if jetson.clocks_locked is False:
        yield Finding("note", "clocks are not locked: timings will move", "run: sudo jetson_clocks")
    if jetson.available_gb is not None and jetson.available_gb < LOW_MEMORY_GB:
        text = f"{jetson.available_gb} GB of memory available, building wants {LOW_MEMORY_GB:g}"
        yield Finding("note", text, "close the desktop (sudo init 3), or add swap")


def _import_failure(error: ImportError, jetson: Jetson | None) -> tuple[str, str]:
    """Return the cause of a failed import and its cure."""
    text, name = str(error), error.name or ""
    rtx = "tensorrt_rtx" in name + text
    module = "tensorrt_rtx" if rtx else "tensorrt"
    extra = wheels.extra("rtx" if rtx else "tensorrt")
    again = f"run: pip install --force-reinstall 'lgvit-edge[{extra}]'"
    if jetson is not None and not rtx:
        again = _REINSTALL
    if isinstance(error, ModuleNotFoundError) and name in ("", module):
        if jetson is None:
            return f"{module} is not installed", f"run: pip install 'lgvit-edge[{extra}]'"
        if rtx:
            what = "TensorRT-RTX is not installed and does not support Jetson"
            return what, "use JetPack's TensorRT"
        return _absent_on_jetson(jetson)
    if name == f"{module}.{module}" or re.search("undefined symbol: _?Py", text):
        what = f"{module} is here, but built for another Python than this {_python()}"
        return what, again if jetson is None else _VENV.format("/usr/bin/python3")
    if "libnvdla_compiler.so" in text:
        what = "libnvdla_compiler.so is missing: TensorRT built for JetPack 6 loads it, "
        return what + "JetPack 7.2 does not have it", _REINSTALL
    if "GLIBC" in text or "undefined symbol" in text:
        return f"{module} was built for another system or version ({text})", again
    library = re.search(r"(lib(?:nvinfer|nvonnxparser|tensorrt)\S*?): cannot open shared", text)
    if library:
        what = f"{library[1]} is not here: the Python module {module} has no libraries, "
        return what + "or libraries of another version", again
    if "numpy" in text.lower():
        return f"{module} was built for another NumPy ({text})", "run: pip install 'numpy<2'"
    return f"{module} cannot be imported ({text})", again


def _absent_on_jetson(jetson: Jetson) -> tuple[str, str]:
    if not jetson.pythons:
        return "the tensorrt module of JetPack is not installed", _APT
    here = _python()
    if "" in jetson.pythons or here in jetson.pythons:
        what = "tensorrt of JetPack lies in /usr/lib/python3*/dist-packages, which this Python "
        what += "does not see (a venv needs --system-site-packages)"
        return what, _VENV.format("/usr/bin/python3")
    built = jetson.pythons[-1]
    what = f"tensorrt of JetPack is built for Python {built}, this is {here}"
    if numbers(built) < (3, 10):
        return f"{what}, and lgvit-edge needs 3.10", _way_out(jetson.model)
    return what, _VENV.format(f"python{built}")


def _too_old(what: str, model: str | None) -> Finding:
    text = f"{what} has no LayerNormalization, which every bundle uses; 8.6 is the oldest that has"
    return Finding("problem", text, _way_out(model))


def _way_out(model: str | None) -> str:
    """Return what to do instead of JetPack 5 or older."""
    # Containers for JetPack 5 (L4T 35) have TensorRT 8.5 too: jetson-containers offers 8.6 for
    # L4T 36 alone.
    cpu = "run on ONNX Runtime, in a Python 3.10 or newer: pip install 'lgvit-edge[cpu]'"
    if re.search("xavier|jetson-agx", model or "", re.IGNORECASE):
        return f"Xavier has no newer JetPack than 5: {cpu}"
    who = "" if "orin" in (model or "").lower() else " (Orin; Xavier stays on 5)"
    return f"flash JetPack 6 or newer{who}, or {cpu}"


def _distribution() -> str | None:
    names = ("tensorrt", "tensorrt_cu13_bindings", "tensorrt_cu12_bindings")
    return next(filter(None, map(version_of, names)), None)


def _python() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def _rank(mode: str) -> tuple[bool, bool, int]:
    watts = re.search(r"(\d+)W", mode)
    return "MAXN" in mode, "SUPER" in mode, int(watts[1]) if watts else 0
