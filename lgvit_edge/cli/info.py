"""What ``lgvit-edge info`` shows of a checkpoint or a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lgvit_edge._support.optional import require
from lgvit_edge._support.terminal import console, say, table
from lgvit_edge.architecture.heads import HEAD_KINDS
from lgvit_edge.bundle.directory import MANIFEST
from lgvit_edge.bundle.inspection import inspect_bundle
from lgvit_edge.cli.options import AsJson
from lgvit_edge.errors import CheckpointError


def inspect(path: Path) -> dict[str, Any]:
    """Describe a bundle or a checkpoint as JSON.

    Raises:
        LGViTEdgeError: neither, or damaged.
    """
    if not path.exists():
        raise CheckpointError(f"no such checkpoint or bundle: {path}")
    if (path / MANIFEST).is_file():
        return inspect_bundle(path)
    if path.is_dir() and not (path / "config.json").is_file():
        raise CheckpointError(
            f"{path} is neither a bundle nor a checkpoint: expected {MANIFEST} or config.json in it"
        )
    require("torch", extra="export")
    from lgvit_edge.model.inspection import inspect_checkpoint

    return inspect_checkpoint(path)


def print_info(found: dict[str, Any], console: Console) -> None:
    """The same for people."""
    base, path = found["baseline"], found["path"]
    console.print(
        f"[bold]{escape(found['path'])}[/] ({found['kind']}): {found['family']}, "
        f"{found['blocks']} blocks, {found['exits']} exits, {found['classes']} classes, "
        f"images of {found['image_size']} x {found['image_size']}",
        highlight=False,
    )
    if found["kind"] == "checkpoint":
        console.print(
            f"patches of {found['patch_size']} x {found['patch_size']} pixels, {_shape(found)}; "
            f"{base['macs'] / 1e9:.2f} G MACs without exits, "
            f"{base['macs_without_attention_products'] / 1e9:.2f} G if attention's two products "
            "are left out, as the paper does",
            highlight=False,
            soft_wrap=True,
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
    console.print(_segments(found))
    if found.get("points"):
        console.print(_points(found["points"]))


def _points(points: dict[str, Any]) -> Table:
    """Operating points, and where their times were measured."""
    shown = table(
        *("point", "policy"), numbers=("accuracy", "lost", "MACs x", "mean (ms)", "images")
    )
    for name, point in points.items():
        shown.add_row(
            name,
            point["policy"]["name"],
            f"{point['accuracy']:.2%}",
            f"{point['baseline_accuracy'] - point['accuracy']:.2%}",
            f"{point['macs_speedup']:.2f}",
            f"{point['latency_ms']:.2f}",
            str(point["images"]),
        )
    devices = {point["device"] for point in points.values()}
    shown.caption = f"times: {'; '.join(sorted(devices))}"
    shown.caption_justify = "left"
    return shown


def _shape(found: dict[str, Any]) -> str:
    """A backbone's sizes in words."""
    if not found["depths"]:
        return f"{found['hidden_size']} wide, {found['attention_heads']} attention heads"
    stages = len(found["depths"])
    return (
        f"stages of {', '.join(map(str, found['depths']))} blocks, {found['hidden_size']} to "
        f"{found['hidden_size'] << stages - 1} wide, windows of {found['window_size']} x "
        f"{found['window_size']} tokens"
    )


def _segments(found: dict[str, Any]) -> Table:
    """What each segment costs: its blocks, which are what lies between exits, and its head."""
    base, rows = found["baseline"], found["segments"]
    split = all("head_macs" in row for row in rows[:-1])
    costs = ("MACs (M)", "+ head") if split else ("MACs (M)",)
    shown = table("exit", "blocks", "head", numbers=(*costs, "total", "speed-up", "params (M)"))
    for row in rows:
        last = row is rows[-1]
        size = f" {HEAD_KINDS[row['head']].size}={row['size']}" if row.get("size") else ""
        head = row.get("head_macs", 0)
        parts = [row["macs"] - head, None if last else head] if split else [row["macs"]]
        shown.add_row(
            "final" if last else str(row["index"] + 1),
            f"{row['first_block']}-{row['last_block']}",
            "" if last else row["head"] + size,
            *("" if part is None else f"{part / 1e6:,.1f}" for part in parts),
            f"{row['cumulative_macs'] / 1e6:,.1f}",
            f"{row['macs_speedup']:.2f}x",
            f"{row['parameters'] / 1e6:,.2f}",
        )
    shown.add_section()
    macs, parameters = f"{base['macs'] / 1e6:,.1f}", f"{base['parameters'] / 1e6:,.2f}"
    blank = [""] * (len(costs) - 1)
    shown.add_row("none", f"1-{found['blocks']}", "", macs, *blank, macs, "1.00x", parameters)
    return shown


def info(
    path: Annotated[Path, typer.Argument(help="A checkpoint or a bundle.")],
    as_json: AsJson = False,
) -> None:
    """Show blocks, exits, heads, MACs and parameters of a checkpoint or a bundle."""
    found = inspect(path)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        print_info(found, console)
