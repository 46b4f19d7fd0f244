"""The text of our CUDA kernels: made from its source, and read by NVIDIA's assembler."""

from __future__ import annotations

import ctypes
import hashlib
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import fake_cuda
import pytest

from lgvit_edge.runtime.backends.device_exit import _Exit
from lgvit_edge.runtime.cuda import graphs

SOURCES = sorted(fake_cuda.KERNELS.glob("*.cu"))
TOOL = Path(__file__).parents[2] / "tools" / "ptx.py"


def test_every_kernel_has_its_text() -> None:
    assert SOURCES
    assert {p.stem for p in SOURCES} == {p.stem for p in fake_cuda.KERNELS.glob("*.ptx")}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_text_is_made_from_its_source(source: Path) -> None:
    text = source.with_suffix(".ptx").read_text()
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert digest in text.splitlines()[0], "run: python tools/ptx.py"
    # What drivers since CUDA 11.8 and GPUs since Turing read.
    assert re.search(r"^\.version 7\.8$", text, re.M) and re.search(r"^\.target sm_75$", text, re.M)
    for name in re.findall(r'extern "C" __global__ void (\w+)', source.read_text()):
        assert f".visible .entry {name}(" in text


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_text_is_what_nvcc_makes(source: Path) -> None:
    """Another release of nvcc makes another text: only the one that made ours is asked."""
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc, of the CUDA toolkit")
    text = source.with_suffix(".ptx").read_text()
    release = subprocess.run(["nvcc", "--version"], check=True, capture_output=True, text=True)
    (version,) = re.findall(r"release .*", release.stdout)
    if version not in text:
        pytest.skip(f"the text was made by another nvcc than this one's {version}")
    assert runpy.run_path(str(TOOL))["ptx"](source) == text


@pytest.mark.parametrize("gpu", [75, 80, 86, 87, 89, 90, 100, 110, 120])
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_text_is_assembled_for_every_gpu(source: Path, gpu: int, tmp_path: Path) -> None:
    """87: Orin; 110: Thor; 75 to 120: cards from RTX 20 to RTX 50."""
    if shutil.which("ptxas") is None:
        pytest.skip("needs ptxas, of the CUDA toolkit")
    command = ["ptxas", "-c", f"-arch=sm_{gpu}", "-o", str(tmp_path / "kernel.o")]
    done = subprocess.run(
        [*command, str(source.with_suffix(".ptx"))], capture_output=True, text=True
    )
    if "is not defined for option" in done.stderr:
        pytest.skip(f"this ptxas does not know sm_{gpu}")
    assert done.returncode == 0, done.stderr


def test_arguments_have_the_kernels_size() -> None:
    (size,) = re.findall(
        r"decide_exit_param_0\[(\d+)\]\n\)", (fake_cuda.KERNELS / "exit.ptx").read_text()
    )
    assert ctypes.sizeof(_Exit) == int(size)


def test_structures_are_those_of_nvidias_header(tmp_path: Path) -> None:
    """What no error would tell: a driver reads whatever lies at its offsets."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("needs nvcc, of the CUDA toolkit")
    ours = {
        "CUgraphNodeParams": (graphs.NodeParams, {"type": "type", "kernel": "of"}),
        "CUDA_KERNEL_NODE_PARAMS_v3": (
            graphs._KernelParams,
            {
                **{"func": "function", "gridDimX": "blocks", "blockDimX": "threads"},
                **{"sharedMemBytes": "shared", "kernelParams": "arguments", "extra": "extra"},
                "ctx": "context",
            },
        ),
        "CUDA_CHILD_GRAPH_NODE_PARAMS": (
            graphs._ChildParams,
            {"graph": "graph", "ownership": "ownership"},
        ),
        "CUDA_CONDITIONAL_NODE_PARAMS": (
            graphs._ConditionalParams,
            {name: name for name in ("handle", "type", "size")}
            | {"phGraph_out": "bodies", "ctx": "context"},
        ),
    }
    lines, expected = [], []
    for name, (structure, members) in ours.items():
        lines.append(f"sizeof({name})")
        expected.append(ctypes.sizeof(structure))
        for theirs, mine in members.items():
            lines.append(f"offsetof({name}, {theirs})")
            expected.append(getattr(structure, mine).offset)
    names = ("KERNEL", "GRAPH", "CONDITIONAL")
    lines += [f"CU_GRAPH_NODE_TYPE_{name}" for name in names]
    lines += ["CU_GRAPH_COND_ASSIGN_DEFAULT", "CU_GRAPH_COND_TYPE_IF"]
    expected += [graphs._KERNEL, graphs._CHILD, graphs._CONDITIONAL, graphs._DEFAULT_AT_LAUNCH, 0]
    source = tmp_path / "layout.cu"
    prints = "".join(f'printf("%zu\\n", (size_t)({line}));' for line in lines)
    includes = "#include <cuda.h>\n#include <cstddef>\n#include <cstdio>\n"
    source.write_text(f"{includes}int main() {{ {prints} }}")
    program = tmp_path / "layout"
    subprocess.run([nvcc, "-o", str(program), str(source)], check=True, capture_output=True)
    found = subprocess.run([str(program)], check=True, capture_output=True, text=True)
    assert list(map(int, found.stdout.split())) == expected
