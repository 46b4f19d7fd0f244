"""The first page of a device report: what a reader asks first, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lgvit_edge._support.text import escaped
from lgvit_edge.benchmarks.device.steps import Job
from lgvit_edge.bundle.manifest import PassSpec

_UNKNOWN = "-"


def summary(job: Job, outcomes: Sequence[dict[str, Any]]) -> str:
    """Return the page. What no step told is shown as ``-``, never guessed."""
    records = {outcome["name"]: _record(job, outcome) for outcome in outcomes}
    rows = [
        *_machine(records.get("machine", {})),
        *_model(job),
        *_measured(records),
    ]
    lines = [
        f"# {', '.join(dict.fromkeys(p.family for p in job.manifest.passes))} on {rows[0][1]}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {question} | {_cell(answer)} |" for question, answer in rows),
        "",
        "| step | | seconds | |",
        "|---|---|---|---|",
        *(
            f"| {row['name']} | {row['state']} | {row['seconds']:g} | {_cell(row['why'])} |"
            for row in outcomes
        ),
        "",
        "Random images, so no accuracy. Raw values: the files of each step.",
        "",
    ]
    return "\n".join(lines)


def _machine(record: dict[str, Any]) -> list[tuple[str, Any]]:
    machine, jetson = record.get("machine", {}), record.get("jetson") or {}
    gpus = "; ".join(machine.get("gpus", [])) or "no NVIDIA GPU"
    clocks = {None: "unknown", True: "locked", False: "not locked"}[jetson.get("clocks_locked")]
    rows = [
        ("device", jetson.get("model") or machine.get("cpu")),
        ("processor", f"{machine.get('cpu')}, {machine.get('cores')} cores"),
        ("memory", f"{machine.get('memory_gb')} GB"),
        ("GPU", gpus),
        ("system", f"{machine.get('system')}, Python {machine.get('python')}"),
    ]
    if jetson:
        rows += [
            ("JetPack, TensorRT", f"{jetson.get('jetpack')}, {jetson.get('tensorrt')}"),
            ("power mode, clocks", f"{jetson.get('power_mode')}, {clocks}"),
        ]
    return rows if record else [("device", _UNKNOWN)]


def _model(job: Job) -> list[tuple[str, Any]]:
    manifest = job.manifest
    several = len(manifest.passes) > 1
    rows = [
        (
            manifest.pass_title(number) if several else "model",
            f"{each.family}, {each.num_blocks} blocks, image {each.image_size}, "
            f"{manifest.num_classes} classes, {_exits(each, number == len(manifest.passes))}",
        )
        for number, each in enumerate(manifest.passes, 1)
    ]
    return [
        *rows,
        ("export", f"{manifest.precision}, batch {manifest.batch}, opset {manifest.opset}"),
    ]


def _exits(each: PassSpec, last: bool) -> str:
    after = [segment.last_block for segment in each.segments]
    blocks = ", ".join(map(str, after[:-1] if last else after))
    return f"exits after blocks {blocks}" if blocks else "no exits"


def _measured(records: dict[str, dict[str, Any]]) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    if parity := records.get("parity"):
        verdict = "within" if parity["within"] else "NOT within"
        rows += [
            ("runs on", ", ".join(f"{k} {v}" for k, v in parity["runtime"].items())),
            (
                "max difference from PyTorch",
                f"{parity['largest']:.2g}, {verdict} {parity['tolerance']:g}, batches of "
                f"{parity['batch_sizes'][0]} to {parity['batch_sizes'][-1]}",
            ),
        ]
    if bench := records.get("bench"):
        base, last = bench["baseline"]["network_ms"]["p50"], bench["exits"][-1]
        rows += [
            ("baseline, median", f"{base:.3f} ms"),
            ("all segments / baseline", f"{last['network_ms']['p50'] / base:.3f}x the time"),
            (
                "each exit as often: speed-up",
                f"{bench['speedup']['wall_clock']:.2f}x, by MACs {bench['speedup']['macs']:.2f}x",
            ),
            ("unstable", "; ".join(bench["unstable"]) or "no"),
        ]
        meters = [meter for meter in (bench["energy"] or {}).get("meters", []) if meter["chain"]]
        rows += [
            (
                f"energy, {meter['name']}",
                f"{meter['baseline']['mj_per_image']:.2f} mJ an image of the baseline, "
                f"{meter['chain']['mj_per_image']:.2f} of the chain; {meter['covers']}",
            )
            for meter in meters
        ]
        rows += [] if meters else [("energy", "this machine tells none")]
    if ways := records.get("ways"):
        for name, times in ways["ways"].items():
            if "refused" in times:
                rows.append((name, f"not here: {times['refused']}"))
                continue
            ms, usual = times["ms"][-1], times["default_ms"][-1]
            rows.append((f"all segments, {name}", f"{ms:.3f} ms, by default {usual:.3f}"))
    if soak := records.get("soak"):
        memory, latency = soak["memory_mb"], soak["latency_ms"]
        rows += [
            ("soak", f"{soak['images']} images in {soak['seconds']:.0f} s"),
            (
                "memory",
                f"{memory['first']:.1f} to {memory['last']:.1f} MB, {memory['slope']:+.3f} a minute"
                f" (95 %: {memory['low']:+.3f} to {memory['high']:+.3f})",
            ),
            (
                "latency of exit 1",
                f"{latency['first_half']:.3f} ms in the first half, {latency['second_half']:.3f} "
                "in the second",
            ),
        ]
    return rows


def _record(job: Job, outcome: dict[str, Any]) -> dict[str, Any]:
    if outcome["state"] != "done":
        return {}
    path = job.file(f"{outcome['name']}.json")
    if not path.exists():
        return {}
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def _cell(value: Any) -> str:
    return escaped(str(_UNKNOWN if value is None else value)).replace("|", "\\|")
