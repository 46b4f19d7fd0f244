"""The ``doctor`` command: shows what is installed, what can run here and what to install."""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from rich.markup import escape as without_markup
from typer import Option

from lgvit_edge._support.terminal import note, plain, progress_bar, table
from lgvit_edge._support.text import escaped
from lgvit_edge.bundle.evidence import LEAST_IMAGES
from lgvit_edge.cli.evidence import print_evidence, tell_unreadable
from lgvit_edge.cli.options import (
    AsJson,
    Backend,
    Classes,
    Device,
    Labels,
    Samples,
    Threads,
    labelled_images,
    show,
)
from lgvit_edge.errors import UsageError
from lgvit_edge.machine.wheels import cuda_python

if TYPE_CHECKING:
    from lgvit_edge.runtime.backends.base import ChainOptions

# One package of each set is enough. The two builds of onnxruntime install the same files.
EITHER = ({"onnxruntime", "onnxruntime-gpu"}, {"pycuda", "cuda-bindings"})


def doctor(
    engines: Annotated[
        Path | None, Option(help="Bundle whose fastest backend is measured again.")
    ] = None,
    data: Annotated[
        Path | None,
        Option(
            help="Images that the bundle also runs in precisions below float32, so that auto may "
            "take those that decide alike: one sub-folder per class, or a flat folder."
        ),
    ] = None,
    labels: Labels = None,
    classes: Classes = None,
    samples: Samples = None,
    policy: Annotated[
        str | None,
        Option(
            help="With --data: also compare at this policy, such as confidence:0.8. Default: the "
            "bundle's and its operating points'."
        ),
    ] = None,
    threads: Threads = None,
    device: Device = None,
    backend: Backend = "auto",
    as_json: AsJson = False,
) -> None:
    """Show what is installed, what can run here, what is missing, and which backends auto chose."""
    from lgvit_edge.runtime.backends.base import ChainOptions
    from lgvit_edge.runtime.backends.registry import AUTO
    from lgvit_edge.runtime.examination import examine

    options = ChainOptions(threads=threads, device=device)
    if engines is None and (options.given or backend != AUTO):
        raise UsageError("--threads, --device and --backend need --engines")
    if data is not None:
        if engines is None:
            raise UsageError("--data needs --engines")
        _compare(engines, data, labels, classes, samples, policy, backend, options)
    elif labels or classes or samples or policy:
        raise UsageError("--labels, --classes, --samples and --policy need --data")
    report = examine(engines=engines, backend=backend, options=options)
    show(report, as_json, functools.partial(print_examination, options=options))


def _compare(
    engines: Path,
    data: Path,
    labels: Path | None,
    classes: str | None,
    samples: int | None,
    policy: str | None,
    backend: str,
    options: ChainOptions,
) -> None:
    """Keep evidence of the precisions below float32 that are offered here."""
    from lgvit_edge.bundle.directory import check_writable, open_bundle
    from lgvit_edge.policies import parse
    from lgvit_edge.runtime.precision import policies_judged
    from lgvit_edge.runtime.selection import lower_precisions
    from lgvit_edge.runtime.session import open_in_float32
    from lgvit_edge.tuning import collect, compare_precisions

    other = None if policy is None else parse(policy)
    bundle = open_bundle(engines)
    policies_judged(bundle.manifest)  # before images run, as they may be invalid
    if other is not None:
        other.start(len(bundle.manifest.segments) - 1)  # fits the exits
    check_writable(engines)
    if not (offered := lower_precisions(bundle, backend, options)):
        note("no backend here offers a precision below float32: there is nothing to compare")
        return
    images = labelled_images(bundle.manifest, data, labels, classes, samples)
    if len(images) < LEAST_IMAGES:
        note(f"{len(images)} images are too few to rely on, expected at least {LEAST_IMAGES}")
    run: dict[str, Any] = dict(backend=backend, threads=options.threads, device=options.device)
    with tempfile.TemporaryDirectory() as folder:
        with (
            open_in_float32(engines, **run) as session,
            progress_bar("all exits in float32") as progress,
        ):
            file = Path(folder, "logits.npy")
            reference = collect(session, images, file, decisions_only=True, progress=progress)
        tell_unreadable(reference, images)
        text = f"all exits in {', '.join(way.label for way in offered)}"
        with progress_bar(text) as progress:
            compare_precisions(
                engines, reference, images, policy=other, note=note, progress=progress, **run
            )


def escape(text: str) -> str:
    """Return text that stands between markup and is shown as it is."""
    return without_markup(escaped(text))


def print_examination(
    report: dict[str, Any], console: Console, options: ChainOptions | None = None
) -> None:
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
    print_evidence(report["evidence"], console, options)
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
