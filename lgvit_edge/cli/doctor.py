"""The ``doctor`` command: what is installed, what can run here, what to install."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lgvit_edge._support.terminal import console, table
from lgvit_edge.cli.options import AsJson

# Any one of a set is enough. The two builds of onnxruntime even install the same files.
EITHER = ({"onnxruntime", "onnxruntime-gpu"}, {"pycuda", "cuda-bindings"})


def doctor(
    engines: Annotated[
        Path | None, typer.Option(help="A bundle: measure anew which backend is fastest for it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what is installed, what can run here, what to install, and what backends were chosen."""
    from lgvit_edge.runtime.examination import examine

    found = examine(engines=engines)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        print_examination(found, console)


def print_examination(found: dict[str, Any], console: Console) -> None:
    """The same for people."""
    machine = found["machine"]
    console.print(
        f"[bold]lgvit-edge {found['lgvit-edge']}[/], Python {machine['python']}, "
        f"{machine['system']}\n{machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gb']} GB; GPU: {'; '.join(machine['gpus']) or 'none found'}",
        highlight=False,
    )
    packages = table("package", "version", "for", "to install")
    installed = {row["name"] for row in found["packages"] if row["version"]}
    enough = installed.union(*(names for names in EITHER if installed & names))
    on_jetson = {"tensorrt": "comes with JetPack", "tensorrt-rtx": "not for Jetson"}
    packages.columns[-1].no_wrap = True  # a command, to be copied
    for row in found["packages"]:
        command = "" if row["name"] in enough else f"pip install 'lgvit-edge[{row['extra']}]'"
        if command and found["jetson"]:
            command = on_jetson.get(row["name"], command)
        packages.add_row(row["name"], row["version"] or "[dim]-[/]", row["for"], _plain(command))
    console.print(packages)
    backends = table("backend", "runs here", "")
    for row in found["backends"]:
        runs = "[green]yes[/]" if row["runs"] else "[yellow]no[/]"
        backends.add_row(row["name"], runs, _plain(row["note"].replace("; run: ", "\nrun: ")))
    console.print(backends)
    if not machine["nvidia_driver"]:
        console.print(
            "No NVIDIA driver: a PC with an NVIDIA GPU needs one, on Ubuntu: "
            "sudo ubuntu-drivers install",
            highlight=False,
            soft_wrap=True,
        )
    if found["jetson"]:
        _print_jetson(found["jetson"], console)
    _print_choices(found["choices"], console)
    if not any(row["runs"] for row in found["backends"]):
        console.print("nothing can run a bundle here; run: pip install 'lgvit-edge\\[cpu]'")


def _print_jetson(found: dict[str, Any], console: Console) -> None:
    def known(name: str) -> str:
        return "unknown" if found[name] is None else str(found[name])

    clocks = {None: "unknown", True: "locked", False: "not locked"}[found["clocks_locked"]]
    console.print(f"[bold]{_plain(known('model'))}[/]", highlight=False)
    memory = "memory unknown"
    if found["available_gb"] is not None:
        memory = f"{found['available_gb']} of {known('memory_gb')} GB of memory available"
    lines = [
        f"L4T {known('l4t')}, JetPack {known('jetpack')}, TensorRT {known('tensorrt')}",
        f"power mode {known('power_mode')}, clocks {clocks}, {memory}",
    ]
    for finding in found["findings"]:
        lines.append(f"{finding['level']}: {finding['text']}")
        if finding["cure"]:
            lines.append(f"  {finding['cure']}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _print_choices(choices: list[dict[str, Any]], console: Console) -> None:
    """What ``backend="auto"`` has measured here."""
    from lgvit_edge.runtime.selection import OVERRIDE

    if chosen := os.environ.get(OVERRIDE):
        console.print(f"{OVERRIDE} makes every session run on {_plain(chosen)}")
    if not choices:
        return
    made = table("bundle", "auto runs it on", "ms per image, measured", "when (UTC)")
    for choice in choices:
        name = " ".join(filter(None, (choice["backend"], choice["precision"])))
        times = ", ".join(f"{n} {ms:.2f}" for n, ms in sorted(choice["measured"].items()))
        refused = [f"{n}: {_plain(why)}" for n, why in choice["refused"].items()]
        made.add_row(
            _plain(choice["bundle"]), name, "\n".join([times, *refused]), choice["date"][:16]
        )
    console.print(made)


def _plain(text: str) -> str:
    return text.replace("[", "\\[")
