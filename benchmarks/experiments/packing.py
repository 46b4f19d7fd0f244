"""Measures what compressing a packed bundle would gain, and how long packing takes.

``python -m lgvit_edge.benchmarks.experiments.packing --engines out/`` packs a bundle as it is, and
compresses that file with what Python has.
"""

from __future__ import annotations

import bz2
import lzma
import tempfile
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lgvit_edge._support.terminal import console, table
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, run_command
from lgvit_edge.bundle.packed import pack, unpack
from lgvit_edge.cli.options import Engines

WAYS: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    "zlib 1": (lambda data: zlib.compress(data, 1), zlib.decompress),
    "zlib 6": (lambda data: zlib.compress(data, 6), zlib.decompress),
    "bz2 9": (lambda data: bz2.compress(data, 9), bz2.decompress),
    "lzma 1": (lambda data: lzma.compress(data, preset=1), lzma.decompress),
    "lzma 6": (lambda data: lzma.compress(data, preset=6), lzma.decompress),
}


def main(engines: Engines, json_file: JsonFile = None) -> None:
    """Times packing and unpacking, and compressing what was packed."""
    record = Record(json_file)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "out.tar", Path(folder) / "out"
        packing, packed = _timed(lambda: pack(engines, file))
        unpacking, _ = _timed(lambda: unpack(file, out))
        data = file.read_bytes()
    size = len(data)
    rows.append({"way": "as it is", "bytes": size, "there_s": packing, "back_s": unpacking})
    for name, (there, back) in WAYS.items():
        compressing, small = _timed(partial(there, data))
        expanding, _ = _timed(partial(back, small))
        rows.append({"way": name, "bytes": len(small), "there_s": compressing, "back_s": expanding})
    shown = table("", numbers=("MB", "share", "there (s)", "back (s)"))
    for row in rows:
        shown.add_row(
            row["way"],
            f"{row['bytes'] / 1e6:.2f}",
            f"{row['bytes'] / size:.1%}",
            f"{row['there_s']:.2f}",
            f"{row['back_s']:.2f}",
        )
    console.print(shown)
    record.write(files=packed.files, rows=rows)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    done = work()
    return time.perf_counter() - began, done


if __name__ == "__main__":
    run_command(main)
