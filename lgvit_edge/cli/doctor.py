"""The ``doctor`` command: shows what is installed, what can run here and what to install."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.markup import escape as without_markup
from typer import Option

from lgvit_edge._support.terminal import plain, table
from lgvit_edge._support.text import escaped
from lgvit_edge.cli.options import AsJson, show
from lgvit_edge.machine.wheels import cuda_python

# One package of each set is enough. The two builds of onnxruntime install the same files.
EITHER = ({"onnxruntime", "onnxruntime-gpu"}, {"pycuda", "cuda-bindings"})


def doctor(
    engines: Annotated[
        Path | None, Option(help="Bundle whose fastest backend is measured again.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what is installed, what can run here, what is missing, and which backends auto chose."""
    from lgvit_edge.runtime.examination import examine

    show(examine(engines=engines), as_json, print_examination)


def escape(text: str) -> str:
    """Return text that stands between markup and is shown as it is."""
    return without_markup(escaped(text))


def print_examination(report: dict[str, Any], console: Console) -> None:
    """Print what ``examine`` reports of this machine."""
    machine = report["machine"]
    console.print(
        f"[bold]lgvit-edge {report['lgvit-edge']}[/], Python {machine['python']}, "
        f"{machine['system']}\n{machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gb']} GB; GPU: {'; '.join(machine['gpus']) or 'none found'}",
        highlight=False,
    )
    packages = table("package", "version", "for", "to install")
    installed = {row["name"] for row in report["packages"] if row["version"]}
    enough = installed.union(*(names for names in EITHER if installed & names))
    on_jetson = {
        "tensorrt": "comes with JetPack",
        "tensorrt-rtx": "not for Jetson",
        "cuda-bindings": f"pip install {cuda_python()}",
    }
    packages.columns[-1].no_wrap = True  # a command, to be copied
    for row in report["packages"]:
        command = "" if row["name"] in enough else f"pip install 'lgvit-edge[{row['extra']}]'"
        if command and report["jetson"]:
            command = on_jetson.get(row["name"], command)
        packages.add_row(row["name"], row["version"] or "[dim]-[/]", row["for"], escape(command))
    console.print(packages)
    backends = table("backend", "runs here", "")
    for row in report["backends"]:
        runs = "[green]yes[/]" if row["runs"] else "[yellow]no[/]"
        backends.add_row(row["name"], runs, escape(row["note"].replace("; run: ", "\nrun: ")))
    console.print(backends)
    if not machine["nvidia_driver"]:
        console.print(
            "No NVIDIA driver: a PC with an NVIDIA GPU needs one, on Ubuntu: "
            "sudo ubuntu-drivers install",
            highlight=False,
            soft_wrap=True,
        )
    if report["jetson"]:
        _print_jetson(report["jetson"], console)
    told = [f"{meter['name']} ({meter['source']})" for meter in report["power"]["meters"]]
    power = "; ".join(filter(None, [", ".join(told), *report["power"]["notes"]]))
    console.print(plain(f"power: {power}"), soft_wrap=True)
    _print_choices(report["choices"], console)
    if not any(row["runs"] for row in report["backends"]):
        console.print("nothing can run a bundle here; run: pip install 'lgvit-edge\\[cpu]'")


def _print_jetson(jetson: dict[str, Any], console: Console) -> None:
    def text(name: str) -> str:
        return "unknown" if jetson[name] is None else str(jetson[name])

    console.print(f"[bold]{escape(text('model'))}[/]", highlight=False)
    clocks = {None: "unknown", True: "locked", False: "not locked"}[jetson["clocks_locked"]]
    memory = "memory unknown"
    if jetson["available_gb"] is not None:
        memory = f"{jetson['available_gb']} of {text('memory_gb')} GB of memory available"
    lines = [
        f"L4T {text('l4t')}, JetPack {text('jetpack')}, TensorRT {text('tensorrt')}",
        f"power mode {text('power_mode')}, clocks {clocks}, {memory}",
    ]
    for finding in jetson["findings"]:
        lines.append(f"{finding['level']}: {finding['text']}")
        if finding["cure"]:
            lines.append(f"  {finding['cure']}")
    console.print(plain("\n".join(lines)), soft_wrap=True)


def _print_choices(choices: list[dict[str, Any]], console: Console) -> None:
    from lgvit_edge.runtime.selection import OVERRIDE

    if chosen := os.environ.get(OVERRIDE):
        console.print(f"{OVERRIDE} makes every session use {escape(chosen)}")
    if not choices:
        return
    rows = table("bundle", "auto runs it on", "ms per image, measured", "when (UTC)")
    for choice in choices:
        name = " ".join(filter(None, (choice["backend"], choice["precision"])))
        times = ", ".join(f"{n} {ms:.2f}" for n, ms in sorted(choice["measured"].items()))
        refused = [f"{n}: {escape(why)}" for n, why in choice["refused"].items()]
        rows.add_row(
            escape(choice["bundle"]), name, "\n".join([times, *refused]), choice["date"][:16]
        )
    console.print(rows)
