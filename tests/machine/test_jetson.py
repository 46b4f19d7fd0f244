"""Jetsons without one: trees of faked files, and what a person is told about each."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from lgvit_edge.cli.doctor import print_examination
from lgvit_edge.errors import BackendError
from lgvit_edge.export import build_engines
from lgvit_edge.machine.jetson import JETPACKS, Jetson, detect
from lgvit_edge.machine.preflight import Finding, explain_import_error, fits, preflight
from lgvit_edge.runtime.examination import examine

pytestmark = pytest.mark.slow

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
REINSTALL = "sudo apt install --reinstall tensorrt python3-libnvinfer"
# What doctor makes of a TensorRT to see whether it starts.
STARTS = """
class ILogger: pass
class Builder:
    def __init__(self, logger): pass
class Runtime(Builder): pass
"""
VENV = "run: /usr/bin/python3 -m venv --system-site-packages .venv"


@dataclass
class Board:
    """Files of a board in good order, and what to change to put it out of order."""

    root: Path

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def release(self, text: str) -> None:
        major, _, revision = text.partition(".")
        self.write(
            "etc/nv_tegra_release",
            f"# R{major} (release), REVISION: {revision}, GCID: 38968081, BOARD: generic, "
            "EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n# KERNEL_VARIANT: oot\n",
        )

    def model(self, name: str) -> None:
        self.write("proc/device-tree/model", name + "\0")

    def packages(self, *named: tuple[str, str], status: str = "install ok installed") -> None:
        entries = [("bash", "5.1-6"), *named, ("tensorrt-libs", "99.0")]
        self.write(
            "var/lib/dpkg/status",
            "\n".join(
                f"Package: {name}\nStatus: {status}\nArchitecture: arm64\nVersion: {version}\n"
                f"Description: of {name}\n more about it\n"
                for name, version in entries
            ),
        )

    def python_module(self, python: str) -> None:
        (self.root / f"usr/lib/python{python}/dist-packages/tensorrt").mkdir(parents=True)

    def power(self, mode: int, *names: str) -> None:
        self.write("var/lib/nvpmodel/status", f"pmode:{mode:04d}")
        rows = [f"< POWER_MODEL ID={i} NAME={name} >\nCPU_X" for i, name in enumerate(names)]
        self.write("etc/nvpmodel.conf", "# FILE: x\n" + "\n".join(rows) + "\n< PM_CONFIG X=1 >\n")

    def clocks(self, gpu: str, *, cpu_locked: bool = True, gpu_locked: bool = True) -> None:
        cpu = "sys/devices/system/cpu/cpu0/cpufreq"
        self.write(f"{cpu}/scaling_min_freq", "1510400\n" if cpu_locked else "115200\n")
        self.write(f"{cpu}/scaling_max_freq", "1510400\n")
        device = f"sys/class/devfreq/{gpu}"
        self.write(f"{device}/min_freq", "624750000\n" if gpu_locked else "306000000\n")
        self.write(f"{device}/max_freq", "624750000\n")

    def memory(self, available_kb: int) -> None:
        self.write("proc/meminfo", f"MemTotal: 7801856 kB\nMemAvailable:   {available_kb} kB\n")

    def detect(self) -> Jetson:
        found = detect(self.root)
        assert found is not None
        return found


@dataclass
class Site:
    """Python packages that are installed as far as this process can tell."""

    folder: Path

    def module(self, code: str, name: str = "tensorrt") -> None:
        (self.folder / f"{name}.py").write_text(f"{STARTS}\n{code}\n")
        importlib.invalidate_caches()

    def distribution(self, version: str, name: str = "tensorrt") -> None:
        info = self.folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    kept = {name: sys.modules.pop(name, None) for name in ("tensorrt", "tensorrt_rtx")}
    yield Site(folder)
    for name, module in kept.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


@pytest.fixture
def board(tmp_path: Path) -> Board:
    """Orin Nano with JetPack 6.2, in good order; its Python is the one that runs the tests."""
    made = Board(tmp_path / "root")
    made.release("36.4.3")
    made.model("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super")
    made.packages(("tensorrt", "10.3.0.30-1+cuda12.5"), ("libnvinfer-bin", "10.3.0.30-1+cuda12.5"))
    made.python_module(HERE)
    made.power(2, "15W", "25W", "MAXN_SUPER", "7W")
    made.clocks("17000000.gpu")
    made.memory(5_000_000)
    made.write("usr/lib/aarch64-linux-gnu/nvidia/libnvdla_compiler.so", "")
    return made


def absent(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


def complaints(jetson: Jetson) -> list[Finding]:
    return [finding for finding in preflight(jetson) if finding.level != "ok"]


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


# What board this is


def test_a_board_in_good_order_is_known_and_has_nothing_to_say(board: Board, site: Site) -> None:
    site.module("__version__ = '10.3.0'")
    jetson = board.detect()
    assert jetson.model == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert (jetson.l4t, jetson.tensorrt, jetson.power_mode) == ("36.4.3", "10.3.0.30", "MAXN_SUPER")
    assert jetson.clocks_locked is True and jetson.dla_compiler and jetson.pythons == (HERE,)
    assert (jetson.memory_gb, jetson.available_gb) == (8.0, 5.1)
    release, tensorrt = preflight(jetson)
    assert release.text.startswith(
        "JetPack 6.1/6.2 (L4T 36.4.3): expect TensorRT 10.3, Python 3.10"
    )
    assert (release.level, tensorrt.level, tensorrt.text) == ("ok", "ok", "TensorRT 10.3.0")


@pytest.mark.parametrize(
    ("release", "model", "gpu", "package", "version", "name"),
    [
        ("36.3.0", "NVIDIA Jetson AGX Orin", "17000000.ga10b", "libnvinfer8", "8.6.2.3", "6.0"),
        ("36.4.4", "NVIDIA Jetson Orin NX", "17000000.gpu", "libnvinfer10", "10.3.0.30", "6.1/6.2"),
        ("38.2.0", "NVIDIA Jetson AGX Thor", "gpu-gpc-0", "tensorrt", "10.13.3.9", "7.0/7.1"),
        ("39.2.0", "NVIDIA Jetson AGX Thor", "gpu-gpc-0", "tensorrt", "10.16.2.10", "7.2"),
        ("39.2.1", "NVIDIA Jetson Orin Nano", "17000000.gpu", "tensorrt", "10.16.2.10", "7.2"),
    ],
)
def test_every_jetpack_in_good_order_passes(
    board: Board,
    site: Site,
    release: str,
    model: str,
    gpu: str,
    package: str,
    version: str,
    name: str,
) -> None:
    board.release(release)
    board.model(model)
    board.packages((package, f"{version}-1+cuda13.2"))
    board.clocks(gpu)
    site.module(f"__version__ = '{version}'")
    jetson = board.detect()
    assert jetson.jetpack is not None and jetson.jetpack.name == name
    assert jetson.tensorrt == version
    assert not complaints(jetson)


def test_tensorrt_11_passes_only_where_it_supports_jetpack(board: Board, site: Site) -> None:
    site.module("__version__ = '11.4.1.5'")
    board.release("39.2.1")
    assert not complaints(board.detect())
    board.release("36.4.3")
    assert "does not support this JetPack" in only(complaints(board.detect())).text


def test_the_clocks_of_thors_video_engine_do_not_count(board: Board, site: Site) -> None:
    board.clocks("gpu-gpc-0")
    board.write("sys/class/devfreq/gpu-nvd-0/min_freq", "1")
    board.write("sys/class/devfreq/gpu-nvd-0/max_freq", "2")
    assert board.detect().clocks_locked is True


def test_a_pc_is_no_jetson(tmp_path: Path) -> None:
    assert detect(tmp_path) is None
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_text("Raspberry Pi 5 Model B Rev 1.0\0")
    assert detect(tmp_path) is None


def test_a_container_without_the_release_file_is_known_by_its_model(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.model("Jetson-AGX")
    jetson = board.detect()
    assert jetson.model == "Jetson-AGX" and jetson.l4t is None and jetson.jetpack is None


@pytest.mark.parametrize("text", ["", "R", "\0\xff" * 100, "# R36 (release), REVISION: ?, GCID"])
def test_malformed_files_are_unknown_and_never_an_error(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent(monkeypatch, "tensorrt")
    board = Board(tmp_path)
    cpu = "sys/devices/system/cpu/cpu0/cpufreq"
    for path in (
        *("etc/nv_tegra_release", "var/lib/nvpmodel/status", "etc/nvpmodel.conf", "proc/meminfo"),
        *("var/lib/dpkg/status", f"{cpu}/scaling_min_freq", "sys/class/devfreq/1.gpu/min_freq"),
    ):
        board.write(path, text)
    (tmp_path / "proc/device-tree/model").mkdir(parents=True)
    jetson = board.detect()
    facts = (jetson.model, jetson.l4t, jetson.tensorrt, jetson.power_mode, jetson.clocks_locked)
    assert facts == (None,) * 5 and jetson.memory_gb is None and jetson.pythons == ()
    first = preflight(jetson)[0]
    assert first.level == "note" and "/etc/nv_tegra_release" in first.text
    assert "dpkg-query --show nvidia-l4t-core" in first.cure


def test_what_a_container_is_given(board: Board) -> None:
    """jetson-containers mounts the model elsewhere; the group has less memory than the board."""
    (board.root / "proc/device-tree/model").unlink()
    board.write("tmp/nv_jetson_model", "NVIDIA Jetson AGX Orin Developer Kit\n")
    board.write("proc/self/cgroup", "0::/\n")
    mount = "31 23 0:28 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n"
    board.write("proc/self/mountinfo", mount)
    assert board.detect().model == "NVIDIA Jetson AGX Orin Developer Kit"
    assert board.detect().available_gb == 5.1
    board.write("sys/fs/cgroup/memory.max", "3000000000\n")
    assert board.detect().available_gb == 3.0
    (board.root / "etc/nv_tegra_release").unlink()
    release = preflight(board.detect())[0]
    assert "in a container: start it with -v /etc/nv_tegra_release" in release.cure


def test_an_unknown_release_is_said_to_be_unknown(board: Board, site: Site) -> None:
    site.module("__version__ = '12.0.0'")
    board.release("41.0.0")
    finding = only(complaints(board.detect()))
    assert finding.level == "note"
    assert finding.text == "L4T 41.0.0 is none of the releases known here (35.2 to 39.2)"
    assert "JetPack 7.2" in finding.cure
    board.release("32.7.1")
    finding = complaints(board.detect())[0]
    assert finding.level == "problem" and "lgvit-edge[cpu]" in finding.cure


def test_packages_that_were_removed_do_not_count(board: Board) -> None:
    board.packages(("tensorrt", "8.6.2.3-1"), status="deinstall ok config-files")
    assert board.detect().tensorrt is None
    board.packages(("libnvinfer8", "8.6.2.3-1"), ("libnvinfer10", "10.3.0.30-1"))
    assert board.detect().tensorrt == "10.3.0.30"


# JetPack 5


@pytest.mark.parametrize(
    ("model", "cure"),
    [
        ("Jetson-AGX", "Xavier has no newer JetPack than 5"),
        ("NVIDIA Jetson Xavier NX Developer Kit", "Xavier has no newer JetPack than 5"),
        ("NVIDIA Jetson AGX Orin Developer Kit", "flash JetPack 6 or newer"),
    ],
)
def test_jetpack_5_as_it_comes_cannot_and_the_way_out_is_named(
    board: Board, monkeypatch: pytest.MonkeyPatch, model: str, cure: str
) -> None:
    absent(monkeypatch, "tensorrt")
    board.release("35.4.1")
    board.model(model)
    board.packages(("tensorrt", "8.5.2.2-1+cuda11.4"))
    board.clocks("17000000.gv11b")
    jetson = board.detect()
    assert jetson.jetpack is not None and jetson.jetpack.python == "3.8"
    finding = only(complaints(jetson))
    assert finding.level == "problem"
    assert finding.text.startswith("TensorRT 8.5.2.2 has no LayerNormalization")
    assert finding.cure.startswith(cure)
    assert "in a Python 3.10 or newer: pip install 'lgvit-edge[cpu]'" in finding.cure
    assert "container" not in finding.cure  # those for JetPack 5 have TensorRT 8.5 too


def test_jetpack_5_with_a_newer_tensorrt_will_do(board: Board, site: Site) -> None:
    board.release("35.4.1")
    board.packages(("tensorrt", "8.6.1.6-1+cuda11.8"))
    site.module("__version__ = '8.6.1'")
    assert not complaints(board.detect())


def test_what_each_jetpack_takes() -> None:
    five, six_zero, six, seven, seven_two = JETPACKS
    assert [pack.major for pack in JETPACKS] == [5, 6, 6, 7, 7]
    assert (six_zero.opset, six.opset) == (17, 20) and min(seven.opset, seven_two.opset) >= 20

    finding = only(fits(five, opset=17, precision="fp32"))
    assert finding.level == "problem" and "TensorRT 8.5 on JetPack 5" in finding.text
    assert "flash JetPack 6" in finding.cure and "Xavier stays on 5" in finding.cure
    assert not fits(five, opset=17, precision="fp32", tensorrt="8.6.1")

    finding = only(fits(six_zero, opset=18, precision="fp32"))
    assert "up to opset 17, the bundle has 18" in finding.text and "--opset 17" in finding.cure
    finding = only(fits(six_zero, opset=17, precision="int8"))
    assert finding.level == "problem" and "--precision fp16" in finding.cure
    assert only(fits(six_zero, opset=17, precision="fp16")).level == "note"

    for pack in (six, seven, seven_two):
        for precision in ("fp32", "fp16", "int8"):
            assert not fits(pack, opset=18, precision=precision)
    assert "--opset 20" in only(fits(six, opset=21, precision="fp16")).cure
    assert "int7" in only(fits(six, opset=18, precision="int7")).text


# What is out of order, one thing at a time


def low_mode(board: Board) -> None:
    board.power(0, "15W", "25W", "MAXN_SUPER")


def low_mode_without_maxn(board: Board) -> None:
    board.power(0, "MODE_10W_2CORE", "MODE_20W_6CORE", "MODE_15W_2CORE")


def unnamed_mode(board: Board) -> None:
    board.power(2)


def moving_gpu_clock(board: Board) -> None:
    board.clocks("17000000.gpu", gpu_locked=False)


def moving_cpu_clock(board: Board) -> None:
    board.clocks("17000000.gpu", cpu_locked=False)


def little_memory(board: Board) -> None:
    board.memory(1_200_000)


@pytest.mark.parametrize(
    ("spoil", "text", "cure"),
    [
        (low_mode, "power mode 15W, the highest is MAXN_SUPER", "run: sudo nvpmodel -m 2"),
        (low_mode_without_maxn, "the highest is MODE_20W_6CORE", "run: sudo nvpmodel -m 1"),
        (unnamed_mode, "power mode 2", "run: sudo nvpmodel -m 0"),
        (moving_gpu_clock, "clocks are not locked", "run: sudo jetson_clocks"),
        (moving_cpu_clock, "clocks are not locked", "run: sudo jetson_clocks"),
        (little_memory, "1.2 GB of memory available", "sudo init 3"),
    ],
)
def test_what_makes_it_slow_is_a_note(
    board: Board, site: Site, spoil: Callable[[Board], None], text: str, cure: str
) -> None:
    site.module("__version__ = '10.3.0'")
    spoil(board)
    finding = only(complaints(board.detect()))
    assert finding.level == "note" and text in finding.text and cure in finding.cure


def test_a_venv_that_does_not_see_jetpacks_module(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent(monkeypatch, "tensorrt")
    finding = only(complaints(board.detect()))
    assert finding.level == "problem" and finding.cure == VENV
    assert "/usr/lib/python3*/dist-packages" in finding.text


def test_a_module_for_another_python(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    absent(monkeypatch, "tensorrt")
    (board.root / f"usr/lib/python{HERE}").rename(board.root / "usr/lib/python3.20")
    board.python_module("3.9")
    finding = only(complaints(board.detect()))
    (board.root / "usr/lib/python3.9/dist-packages/tensorrt").rmdir()
    assert finding.text == f"tensorrt of JetPack is built for Python 3.20, this is {HERE}"
    assert finding.cure == "run: python3.20 -m venv --system-site-packages .venv"

    (board.root / "usr/lib/python3.20").rename(board.root / "usr/lib/python3.8")
    finding = only(complaints(board.detect()))
    assert "lgvit-edge needs 3.10" in finding.text and "flash JetPack 6" in finding.cure


def test_a_system_without_the_module(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    absent(monkeypatch, "tensorrt")
    (board.root / f"usr/lib/python{HERE}/dist-packages/tensorrt").rmdir()
    finding = only(complaints(board.detect()))
    assert finding.cure == "run: sudo apt install tensorrt python3-libnvinfer"


def test_tensorrt_for_jetpack_6_on_7_2(board: Board, site: Site) -> None:
    site.module(
        "raise ImportError('libnvdla_compiler.so: cannot open shared object file: No such file')"
    )
    board.release("39.2.0")
    (board.root / "usr/lib/aarch64-linux-gnu/nvidia/libnvdla_compiler.so").unlink()
    broken, old = complaints(board.detect())
    assert broken.level == old.level == "problem"
    assert "libnvdla_compiler.so is missing" in broken.text and REINSTALL in broken.cure
    assert old.text.startswith("TensorRT 10.3.0.30 found, JetPack 7.2 brings 10.16")
    assert REINSTALL in old.cure


def test_tensorrt_11_from_pypi(board: Board, site: Site) -> None:
    """It is named by its package even where it cannot be imported."""
    site.distribution("11.4.0.106")
    site.module("raise ImportError('libnvinfer.so.11: cannot open shared object file')")
    for release in ("36.4.3", "39.2.0"):
        board.release(release)
        finding = only(complaints(board.detect()))
        assert finding.level == "problem"
        assert "TensorRT 11.4.0.106 does not support this JetPack" in finding.text
        assert finding.cure.startswith("run: pip uninstall -y tensorrt ")


def test_another_version_that_loads_is_a_note(board: Board, site: Site) -> None:
    site.module("__version__ = '10.7.0'")
    finding = only(complaints(board.detect()))
    assert finding.level == "note" and "JetPack 6.1/6.2 brings 10.3" in finding.text


# Imports that fail

JETSON = Jetson(
    "NVIDIA Jetson AGX Orin", "36.4.3", "10.3.0", (HERE,), 0, (), None, None, None, True
)


@pytest.mark.parametrize(
    ("message", "name", "jetson", "expected"),
    [
        ("No module named 'tensorrt'", "tensorrt", None, "pip install 'lgvit-edge[tensorrt]'"),
        ("No module named 'tensorrt'", "tensorrt", JETSON, VENV),
        ("No module named 'tensorrt_rtx'", "tensorrt_rtx", None, "pip install 'lgvit-edge[rtx]'"),
        ("No module named 'tensorrt_rtx'", "tensorrt_rtx", JETSON, "use JetPack's TensorRT"),
        ("No module named 'tensorrt.tensorrt'", "tensorrt.tensorrt", JETSON, "another Python"),
        ("tensorrt.so: undefined symbol: _PyThreadState_Get", "", JETSON, "another Python"),
        ("libnvdla_compiler.so: cannot open shared object file", "", JETSON, REINSTALL),
        (
            "libnvinfer.so.10: cannot open shared object file: No such file or directory",
            *("", None),
            "libnvinfer.so.10 is not here: .* --force-reinstall 'lgvit-edge[tensorrt]'",
        ),
        ("libnvinfer.so.8: cannot open shared object file", "", JETSON, REINSTALL),
        (
            "libc.so.6: version `GLIBC_2.38' not found (required by libnvinfer.so.10)",
            *("", JETSON),
            "another system or version .*GLIBC_2.38",
        ),
        ("libnvinfer.so.10: undefined symbol: _ZN8nvinfer1", "", None, "another system or version"),
        ("numpy.core.multiarray failed to import", "", JETSON, "pip install 'numpy<2'"),
        ("no reason at all", "", None, "no reason at all.*--force-reinstall"),
    ],
)
def test_known_failures_to_import_have_a_cure(
    message: str, name: str, jetson: Jetson | None, expected: str
) -> None:
    kind = ModuleNotFoundError if message.startswith("No module") else ImportError
    told = explain_import_error(kind(message, name=name or None), jetson)
    pattern = re.escape(expected).replace(r"\.\*", ".*")
    assert re.search(pattern, told), told


# build


def test_what_a_board_cannot_compile_is_said_before_it_begins(
    board: Board, site: Site, rtx_bundle: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    site.module("__version__ = '8.6.1'")
    board.release("36.3")
    board.packages(("tensorrt", "8.6.2.3-1+cuda12.2"))
    board.power(0, "15W", "MAXN")
    monkeypatch.setattr("lgvit_edge.machine.jetson.detect", board.detect)
    with pytest.raises(BackendError, match=r"this Jetson cannot.* up to opset 17.*--opset 17"):
        build_engines(rtx_bundle("fp16"), library="tensorrt", note=notes.append)
    assert "power mode 15W, the highest is MAXN; run: sudo nvpmodel -m 1" in notes
    assert not (rtx_bundle("fp16") / "engines").exists()


# doctor


def printed(found: dict[str, object], width: int = 80) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))
    with console.file:
        print_examination(found, console)
        return console.export_text()


def backends(found: dict[str, object]) -> dict[str, tuple[bool, str]]:
    rows = found["backends"]
    assert isinstance(rows, list)
    return {row["name"]: (row["runs"], row["note"]) for row in rows}


def without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("machine.wheels", "runtime.backends.checks"):
        monkeypatch.setattr(f"lgvit_edge.{module}.version_of", lambda name: None)


def test_doctor_on_a_pc_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent(monkeypatch, "tensorrt", "tensorrt_rtx")
    without_packages(monkeypatch)
    found = json.loads(json.dumps(examine(tmp_path)))
    assert found["jetson"] is None
    assert {"tensorrt", "tensorrt-rtx", "pycuda", "cuda-bindings"} <= {
        row["name"] for row in found["packages"]
    }
    told = backends(found)
    for name, extra in (("tensorrt", "tensorrt"), ("tensorrt-rtx", "rtx")):
        command = f"run: pip install 'lgvit-edge[{extra}]'"
        for task in ("build", "run"):
            runs, note = told[f"{name} ({task} engines)"]
            assert not runs and "is not installed" in note and note.count(command) == 1
            needs_gpu = task == "run" or name == "tensorrt"
            assert ("no NVIDIA driver here" in note) == needs_gpu
            assert ("no CUDA binding" in note) == (task == "run")
    for width in (80, 120):
        text = printed(found, width)
        # Commands stay whole, to be copied.
        assert text.count("run: pip install 'lgvit-edge[tensorrt]'") == 2
        assert text.count("run: pip install 'lgvit-edge[rtx]'") == 2
        assert "sudo ubuntu-drivers install" in text
        assert max(map(len, text.splitlines())) <= max(width, 100)


def test_doctor_builds_rtx_engines_without_a_gpu_and_the_rest_with_one(
    tmp_path: Path, site: Site
) -> None:
    site.module("__version__ = '1.7.1'", "tensorrt_rtx")
    site.module("__version__ = '10.16.1'")
    site.distribution("13.5.0", "cuda_bindings")
    told = backends(examine(tmp_path))
    assert told["tensorrt-rtx (build engines)"] == (True, "tensorrt_rtx 1.7.1")
    assert told["tensorrt (build engines)"] == (False, "no NVIDIA driver here")
    assert told["tensorrt-rtx (run engines)"] == (False, "no NVIDIA driver here")
    Board(tmp_path).write("proc/driver/nvidia/version", "NVRM version")
    told = backends(examine(tmp_path))
    for name in ("tensorrt", "tensorrt-rtx"):
        assert told[f"{name} (build engines)"][0] and told[f"{name} (run engines)"][0]


def test_doctor_survives_a_module_that_breaks_in_its_own_way(tmp_path: Path, site: Site) -> None:
    site.module("raise OSError('libcudart.so.13: cannot open shared object file')")
    runs, note = backends(examine(tmp_path))["tensorrt (build engines)"]
    assert not runs and "libcudart.so.13" in note


def test_doctor_shows_the_jetson(board: Board, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.module("__version__ = '10.3.0'")
    without_packages(monkeypatch)
    board.power(0, "15W", "25W", "MAXN_SUPER")
    board.clocks("17000000.gpu", gpu_locked=False)
    found = json.loads(json.dumps(examine(board.root)))
    assert found["jetson"]["jetpack"] == "6.1/6.2" and found["jetson"]["power_mode"] == "15W"
    assert [f["level"] for f in found["jetson"]["findings"]] == ["ok", "ok", "note", "note"]
    told = backends(found)
    assert told["tensorrt (build engines)"] == (True, "tensorrt 10.3.0")
    assert not told["tensorrt-rtx (run engines)"][0]
    assert "does not support Jetson" in told["tensorrt-rtx (run engines)"][1]
    # The extra would bring a TensorRT beside JetPack's.
    assert told["tensorrt (run engines)"][1].endswith("run: pip install cuda-python")
    for width in (80, 120):
        text = printed(found, width)
        assert "NVIDIA Jetson Orin Nano" in text
        assert "L4T 36.4.3, JetPack 6.1/6.2, TensorRT 10.3.0.30" in text
        assert "power mode 15W, clocks not locked, 5.1 of 8.0 GB of memory available" in text
        assert "  run: sudo nvpmodel -m 2\n" in text and "  run: sudo jetson_clocks\n" in text
        assert "comes with JetPack" in text and "ubuntu-drivers" not in text


def test_doctor_says_unknown_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent(monkeypatch, "tensorrt")
    Board(tmp_path).write("etc/nv_tegra_release", "rubbish [/] [bold]")
    text = printed(examine(tmp_path))
    assert "L4T unknown, JetPack unknown, TensorRT unknown" in text
    assert "power mode unknown, clocks unknown, memory unknown" in text
