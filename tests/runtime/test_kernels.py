"""The text of our CUDA kernels: made from its source, and read by NVIDIA's assembler."""

from __future__ import annotations

import hashlib
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import fake_cuda
import pytest

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
