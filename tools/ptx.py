"""Compiles our CUDA kernels to PTX text, which the driver of any newer GPU compiles for itself.

Run it after a change in ``runtime/cuda/kernels/*.cu``; it needs ``nvcc``. With ``--check`` it only
says which texts are not what nvcc makes.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

KERNELS = Path(__file__).resolve().parents[1] / "runtime" / "cuda" / "kernels"
# What CUDA 11.8 reads, the oldest that TensorRT 8.6 is built for; newer drivers read it too.
VERSION = "7.8"
ARCHITECTURE = "compute_75"  # Turing, the oldest that RTX engines are for


def ptx(source: Path) -> str:
    """Return what nvcc makes of a kernel's source."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "kernel.ptx"
        command = ["nvcc", "-ptx", f"-arch={ARCHITECTURE}", "-O3", "-o", str(made), str(source)]
        subprocess.run(command, check=True)
        text = made.read_text()
    text, count = re.subn(r"^\.version .*$", f".version {VERSION}", text, flags=re.MULTILINE)
    assert count == 1, f"{source.name}: expected one line .version, found {count}"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    return f"// Made by tools/ptx.py from {source.name}, sha256 {digest}\n{text}"


def main() -> int:
    """Write every kernel's text, or compare it."""
    stale = []
    for source in sorted(KERNELS.glob("*.cu")):
        text, target = ptx(source), source.with_suffix(".ptx")
        if "--check" not in sys.argv:
            target.write_text(text)
        elif not target.exists() or target.read_text() != text:
            stale.append(target.name)
    if stale:
        print(f"not what nvcc makes: {', '.join(stale)}; run: python tools/ptx.py")
    return len(stale)


if __name__ == "__main__":
    sys.exit(main())
