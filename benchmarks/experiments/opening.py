"""Measures how long a bundle takes to open, and then its first frame, in processes of their own.

``python -m lgvit_edge.benchmarks.experiments.opening --engines out/`` starts one process after the
other, in turn for every backend that is installed. It does so with what OpenVINO keeps in its
cache and without, and for ``auto`` with its measurement and with the choice that it remembers.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from lgvit_edge._support.terminal import console, progress_bar
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, run_command
from lgvit_edge.benchmarks.report.terminal import table_of
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.errors import BackendError
from lgvit_edge.runtime.backends.openvino import available_precisions

# What one process does; it says times in ms, and what ran.
_CODE = """
import json, sys, time
import numpy as np
from lgvit_edge.runtime import Session
begun = time.perf_counter()
with Session.open(sys.argv[1], **json.loads(sys.argv[2])) as session:
    opened = time.perf_counter()
    session.predict(np.zeros((480, 640, 3), np.uint8))
    first = time.perf_counter()
    session.predict(np.zeros((480, 640, 3), np.uint8))
    second = time.perf_counter()
    about = session.describe()
print(json.dumps({
    "open_ms": (opened - begun) * 1e3,
    "first_ms": (first - opened) * 1e3,
    "second_ms": (second - first) * 1e3,
    "ran": [about["backend"], about.get("precision")],
}))
"""


def main(
    engines: Annotated[Path, typer.Option(help="Bundle to open.")],
    turns: Annotated[int, typer.Option(min=1, help="Processes of each way.")] = 5,
    json_file: JsonFile = None,
) -> None:
    """Times opening and the first frame in fresh processes."""
    record = Record(json_file)
    open_bundle(engines)
    ways = _ways()
    raw: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as kept, progress_bar("opening") as progress:
        for options, _ in ways.values():  # fills the cache; for auto, with its choice
            _process(engines, options, kept)
        for turn in range(turns):
            for place, (name, (options, cached)) in enumerate(ways.items()):
                progress(turn * len(raw) + place, turns * len(raw))
                with tempfile.TemporaryDirectory() as empty:
                    raw[name].append(_process(engines, options, kept if cached else empty))
    rows = [
        {"way": name, "ran": " ".join(filter(None, found[0]["ran"]))}
        | {key: statistics.median(each[key] for each in found) for key in _TIMES}
        | {"most_ms": max(each["open_ms"] for each in found)}
        for name, found in raw.items()
    ]
    cells = "{way} | {ran} | {open_ms:,.0f} | {most_ms:,.0f} | {first_ms:,.0f} | {second_ms:,.0f}"
    numbers = ("open (ms)", "most", "first frame", "second")
    console.print(table_of(rows, cells, "way", "ran", numbers=numbers))
    record.write(turns=turns, rows=rows, raw=raw)


_TIMES = ("open_ms", "first_ms", "second_ms")


def _ways() -> dict[str, tuple[dict[str, str], bool]]:
    """Return the options of each way, by name, and whether it finds a cache."""
    ways: dict[str, tuple[dict[str, str], bool]] = {
        "onnxruntime": ({"backend": "onnxruntime"}, True)
    }
    if importlib.util.find_spec("openvino"):
        for precision in available_precisions("cpu"):
            if precision != "fp16":
                options = {"backend": "openvino", "precision": precision}
                ways[f"openvino {precision}, cached"] = (options, True)
                ways[f"openvino {precision}, not cached"] = (options, False)
    return ways | {"auto, remembered": ({}, True), "auto, measures first": ({}, False)}


def _process(engines: Path, options: dict[str, str], cache: str) -> dict[str, Any]:
    """Open the bundle in a process; return what it says.

    Raises:
        BackendError: it failed.
    """
    command = [sys.executable, "-c", _CODE, str(engines), json.dumps(options)]
    done = subprocess.run(
        command,
        env=os.environ | {"LGVIT_EDGE_CACHE": cache},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BackendError(f"{engines} does not open with {options}: {done.stderr[-500:]}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


if __name__ == "__main__":
    run_command(main)
