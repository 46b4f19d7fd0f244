"""What ``lgvit-edge info`` shows of a checkpoint or a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from lgvit_edge._optional import require
from lgvit_edge._schema import to_json
from lgvit_edge._terminal import say, table
from lgvit_edge.bundle import MANIFEST, Bundle, open_bundle
from lgvit_edge.engines import Build, find_builds, graphs_of, read_engine
from lgvit_edge.errors import BundleError, CheckpointError


def inspect(path: Path) -> dict[str, Any]:
    """Describe a bundle or a checkpoint as JSON.

    Raises:
        LGViTEdgeError: neither, or damaged.
    """
    if not path.exists():
        raise CheckpointError(f"no such checkpoint or bundle: {path}")
    if (path / MANIFEST).is_file():
        return _bundle(path)
    return _checkpoint(path)


def _bundle(path: Path) -> dict[str, Any]:
    bundle = open_bundle(path)
    manifest = bundle.manifest
    rows = [
        _row(i, s.first_block, s.last_block, s.head, s.spec.macs, s.spec.parameters)
        for i, s in enumerate(manifest.segments)
    ]
    return {
        "kind": "bundle",
        "path": str(path),
        "family": manifest.family,
        "image_size": manifest.image_size,
        "blocks": manifest.num_blocks,
        "exits": len(manifest.segments) - 1,
        "classes": manifest.num_classes,
        "target": manifest.target,
        "precision": manifest.precision,
        "opset": manifest.opset,
        "input": manifest.input,
        "batch": list(manifest.batch),
        "policy": manifest.policy,
        "parity": max(manifest.parity.max_difference),
        "bytes": sum(p.stat().st_size for p in path.rglob("*") if p.is_file()),
        "versions": manifest.versions,
        "fp32_islands": list(manifest.fp32_islands),
        "calibration": to_json(manifest.calibration),
        "agreement": to_json(manifest.agreement),
        "engines": [_engines(folder, build, bundle) for folder, build in find_builds(path)],
        "baseline": {"macs": manifest.baseline.macs, "parameters": manifest.baseline.parameters},
        "segments": _cumulative(rows, manifest.baseline.macs),
    }


def _engines(folder: Path, build: Build | BundleError, bundle: Bundle) -> dict[str, Any]:
    if isinstance(build, BundleError):
        return {"tag": folder.name, "gpu": None, "count": 0, "bytes": 0, "fault": str(build)}
    fault = build.fault(bundle)
    try:
        for name, graph in {} if fault else graphs_of(bundle).items():
            read_engine(folder, build, name, graph)
    except BundleError as error:
        fault = str(error)
    return {
        "tag": build.tag,
        "gpu": build.gpu,
        "count": len(build.engines),
        "bytes": sum(engine.bytes for engine in build.engines.values()),
        "fault": fault,
    }


def _checkpoint(path: Path) -> dict[str, Any]:
    require("torch", extra="export")
    from lgvit_edge.model import (
        baseline,
        count_macs,
        count_parameters,
        cut,
        example_input,
        load_checkpoint,
    )

    model = load_checkpoint(path)
    config = model.config
    rows = []
    for segment in cut(model):
        macs = count_macs(segment.module, example_input(config, segment.index))
        row = _row(
            segment.index,
            segment.first_block,
            segment.last_block,
            segment.head,
            macs,
            segment.parameters,
        )
        exit = segment.exit
        if exit is not None:
            row |= {"kernel": exit.kernel} if exit.head == "lph" else {"window": exit.window}
        rows.append(row)
    whole = count_macs(baseline(model), example_input(config, None))
    return {
        "kind": "checkpoint",
        "path": str(path),
        "family": config.family,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "hidden_size": config.hidden_size,
        "blocks": config.num_blocks,
        "attention_heads": config.num_heads,
        "exits": config.num_exits,
        "classes": config.num_classes,
        "parameters": count_parameters(model),
        "baseline": {"macs": whole, "parameters": count_parameters(model.backbone)},
        "segments": _cumulative(rows, whole),
    }


def _row(
    index: int, first: int, last: int, head: str, macs: int, parameters: int
) -> dict[str, Any]:
    return {
        "index": index,
        "first_block": first,
        "last_block": last,
        "head": head,
        "macs": macs,
        "parameters": parameters,
    }


def _cumulative(rows: list[dict[str, Any]], baseline_macs: int) -> list[dict[str, Any]]:
    spent = 0
    for row in rows:
        spent += row["macs"]
        row |= {"cumulative_macs": spent, "macs_speedup": baseline_macs / spent}
    return rows


def print_info(found: dict[str, Any], console: Console) -> None:
    """The same for people."""
    base, path = found["baseline"], found["path"]
    console.print(
        f"[bold]{escape(found['path'])}[/] ({found['kind']}): {found['family']}, "
        f"{found['blocks']} blocks, {found['exits']} exits, {found['classes']} classes, "
        f"images of {found['image_size']} x {found['image_size']}",
        highlight=False,
    )
    if found["kind"] == "bundle":
        batch = ":".join(map(str, found["batch"])) if found["batch"][2] > 1 else "1"
        console.print(
            f"target {found['target']}, {found['precision']}, opset {found['opset']}, input "
            f"{found['input']}, batch {batch}, {found['bytes'] / 1e6:.1f} MB, "
            f"max |difference| from PyTorch {found['parity']:.2g}",
            highlight=False,
        )
        if found["calibration"]:
            blocks = ", ".join(map(str, found["calibration"]["blocks"]))
            console.print(f"int8 in the MLPs of blocks {blocks}", highlight=False)
        if found["agreement"]:
            agreement = found["agreement"]
            console.print(
                f"on {agreement['images']} images: {agreement['same_exit']:.2%} leave where they "
                f"do in float32, {agreement['same_label']:.2%} get the same answer",
                highlight=False,
            )
        for engines in found["engines"]:
            fault = engines["fault"]
            state = "" if fault is None else f"; {fault}"
            if fault is not None and "run:" not in fault:
                state += f"; run: lgvit-edge build {path}"
            say(
                f"engines/{engines['tag']}: {engines['count']} engines, "
                f"{engines['bytes'] / 1e6:.1f} MB{state}"
            )
    numbers = ("MACs (M)", "total (M)", "speed-up", "parameters")
    segments = table("segment", "blocks", "exit", "head", numbers=numbers)
    last = found["segments"][-1]["index"]
    for row in found["segments"]:
        size = f" k={row['kernel']}" if "kernel" in row else ""
        size += f" s={row['window']}" if "window" in row else ""
        segments.add_row(
            str(row["index"]),
            f"{row['first_block']}-{row['last_block']}",
            "final" if row["index"] == last else str(row["index"] + 1),
            "classifier" if row["index"] == last else row["head"] + size,
            f"{row['macs'] / 1e6:,.1f}",
            f"{row['cumulative_macs'] / 1e6:,.1f}",
            f"{row['macs_speedup']:.2f}x",
            f"{row['parameters']:,}",
        )
    segments.add_section()
    name = ("baseline", f"1-{found['blocks']}", "", "")
    segments.add_row(*name, f"{base['macs'] / 1e6:,.1f}", "", "", f"{base['parameters']:,}")
    console.print(segments)
