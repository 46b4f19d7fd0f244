"""Runs one step of a device report that is no command of its own, in a process of its own.

``python -m lgvit_edge.benchmarks.device.measure REQUEST``, where ``REQUEST`` is the JSON that
``steps`` writes. What it found goes to the file ``json``, and as text to standard output.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lgvit_edge._support.outputs import write_json
from lgvit_edge._support.terminal import errors, progress_bar, say
from lgvit_edge.benchmarks.device.parity import parity
from lgvit_edge.benchmarks.device.soak import soak
from lgvit_edge.benchmarks.device.ways import compare
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.errors import LGViTEdgeError
from lgvit_edge.runtime import Session
from lgvit_edge.runtime.examination import examine
from lgvit_edge.runtime.session import open_in_float32


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Run the step that a request describes, and return its record."""
    return _STEPS[request["step"]](request)


def main() -> None:
    """Run the step that the first argument describes, and write its record."""
    request = json.loads(sys.argv[1])
    try:
        record = run(request)
    except LGViTEdgeError as error:
        say(f"error: {error}", errors)
        sys.exit(1)
    write_json(Path(request["json"]), record)


def _machine(request: dict[str, Any]) -> dict[str, Any]:
    report = examine()
    del report["choices"]  # names of other bundles
    return report


def _parity(request: dict[str, Any]) -> dict[str, Any]:
    bundle = open_bundle(request["engines"])
    backend, device = request["backend"], request["device"]
    with open_in_float32(request["engines"], backend=backend, device=device) as session:
        record = parity(session, bundle) | {"runtime": session.describe()}
    for size, row in zip(record["batch_sizes"], record["differences"], strict=True):
        worst = record["graphs"][row.index(max(row))]
        say(f"batch {size}: max |difference| from PyTorch {max(row):.2g} ({worst})")
    if not record["within"]:
        say(f"NOT within the bundle's tolerance of {record['tolerance']:g}")
    return record


def _ways(request: dict[str, Any]) -> dict[str, Any]:
    with progress_bar("comparing") as progress:
        ways = compare(
            Path(request["engines"]),
            request["backend"],
            rounds=request["rounds"],
            device=request["device"],
            progress=progress,
        )
    for name, times in ways.items():
        if "refused" in times:
            say(f"{name}: not here: {times['refused']}")
            continue
        pairs = zip(times["ms"], times["default_ms"], strict=True)
        listed = ", ".join(f"{ms:.3f} ({ms / usual:.2f}x)" for ms, usual in pairs)
        say(f"{name}: {listed} ms by exit, median (and against the default, in turn)")
    return {"rounds": request["rounds"], "ways": ways}


def _soak(request: dict[str, Any]) -> dict[str, Any]:
    with _open(request) as session, progress_bar("predicting") as progress:
        record = soak(session, request["seconds"], progress=progress)
    memory, latency = record["memory_mb"], record["latency_ms"]
    say(
        f"{record['images']} images in {record['seconds']:.0f} s: memory {memory['first']:.1f} -> "
        f"{memory['last']:.1f} MB ({memory['slope']:+.3f} MB a minute, 95 % {memory['low']:+.3f} "
        f"to {memory['high']:+.3f}); exit 1 {latency['first_half']:.3f} ms in the first half, "
        f"{latency['second_half']:.3f} in the second"
    )
    return record


def _open(request: dict[str, Any]) -> Session:
    return Session.open(request["engines"], backend=request["backend"], device=request["device"])


_STEPS = {"machine": _machine, "parity": _parity, "ways": _ways, "soak": _soak}

if __name__ == "__main__":
    main()
