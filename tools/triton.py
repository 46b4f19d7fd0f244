"""Puts NVIDIA's Triton, and a Python environment for it, into a folder; for tests and experiments.

    .venv/bin/python tools/triton.py .venv/triton

The server is that of the wheel nvidia-pytriton, which brings the Python backend alone. The wheel is
unpacked rather than installed, because it wants NumPy below 2: its backend sends empty answers with
a newer one. The environment for its models, ``FOLDER/python``, therefore has a NumPy of its own
before the packages of the environment that runs this.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

SERVER = "nvidia-pytriton==0.7.0"
NUMPY = "numpy==1.26.4"


def main() -> None:
    """Make the folder anew; exit with a reason where this machine cannot run the server."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        sys.exit(f"{SERVER} is for Linux on x86-64")
    if sys.version_info >= (3, 13):
        sys.exit(f"Python {version} has no {NUMPY}")
    shutil.rmtree(folder, ignore_errors=True)
    wheels = folder / "wheels"
    pip("download", "--no-deps", "--dest", str(wheels), SERVER)
    (wheel,) = wheels.iterdir()
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    shutil.rmtree(wheels)
    triton = folder / "pytriton" / "tritonserver"
    backend = triton / "backends" / "python"
    stub = triton / "python_backend_stubs" / version / "triton_python_backend_stub"
    for program in (shutil.copy(stub, backend), triton / "bin" / "tritonserver"):
        Path(program).chmod(0o755)
    python = folder / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(python)], check=True)
    site = python / "lib" / f"python{version}" / "site-packages"
    pip("install", "--no-deps", "--target", str(site), NUMPY)
    own = sysconfig.get_path("purelib")
    # As if it were there: what its .pth files add counts too.
    (site / "lgvit-edge.pth").write_text(f"import site; site.addsitedir({own!r})\n")


def pip(*arguments: str) -> None:
    """Run this environment's pip, which only speaks of errors."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, "--quiet"]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
