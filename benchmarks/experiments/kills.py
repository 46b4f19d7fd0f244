"""Kills commands that write with ``kill -9``, at random moments, and looks at what they leave.

``python -m lgvit_edge.benchmarks.experiments.kills --trials 200 --out kills.md`` lets commands
write over older files of a small model. Half of the kills come by the clock, anywhere in the
command's time; the others right before one of its file operations. After each kill every output
must be the old one or the new one, the same command must then succeed, and leave no more files
than a command that was not killed, in its folder, the temporary folder and the cache.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib
import json
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import torch
import typer
from PIL import Image

from lgvit_edge._support import finite_json
from lgvit_edge._support.outputs import write
from lgvit_edge._support.terminal import console, progress_bar, say, table
from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, run_command
from lgvit_edge.bundle.builds import find_builds, graphs_of, read_engine
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.cli.options import check_outputs
from lgvit_edge.errors import BundleError, LGViTEdgeError, TrainingError, UsageError
from lgvit_edge.images.spec import Preprocess
from lgvit_edge.model import LGViT, load_checkpoint, save_checkpoint
from lgvit_edge.model.randomised import randomised

States = dict[str, str]  # of every output, by its path: what it is, in a word
_RESUME = "loads"  # the only state of files that a killed training continues from
# Imported once, before the commands start as forks: nothing is written meanwhile.
_LOADED = ("matplotlib.figure", "onnxscript", "optuna", "torch._dynamo", "jinja2", "tensorrt_rtx")
_HEADERS = ("seconds", "operations", "by clock", "before", "ended", "faults")
_CHANGES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"}  # audit events


@dataclass(frozen=True)
class Case:
    """A command that writes, and how its outputs are looked at."""

    arguments: str  # ``{new}`` is where ``before`` has the old value
    old: str
    new: str
    look: Callable[[Path], States]

    def line(self, value: str) -> list[str]:
        """Returns the command's arguments with one of the two values."""
        return shlex.split(self.arguments.replace("{new}", value))


@dataclass(frozen=True)
class Trial:
    """What one kill did."""

    moment: float  # seconds, or the number of the file operation
    killed: bool  # False: the command had ended before
    fault: str  # empty: none


def cases() -> dict[str, Case]:
    """Returns the commands, each with its old value and the one it writes while it is killed."""
    bundle = "--engines bundle"
    return {
        "export": Case(
            "export --ckpt start.pt --policy confidence:{new} --out out", "0.5", "0.6", _bundles
        ),
        "build": Case("build rtx --force --opt-level {new}", "0", "3", _builds),
        "tune": Case(
            f"tune {bundle} --data photos --trials 2 --name {{new}} --max-drop 0.5 "
            "--json tune.json --plot tune.png",
            "before",
            "after",
            _tuned,
        ),
        "train": Case(
            "train --data photos --val photos --backbone start.pt --batch-size 8 --workers 0 "
            "--device cpu --cache-features features-{new} --epochs {new} --out model.pt",
            "1",
            "2,3",
            _trained,
        ),
        "bench": Case(
            f"bench {bundle} --rounds {{new}} --json bench.json --report bench.html",
            "4",
            "6",
            _benched,
        ),
        "device-report": Case(
            f"device-report {bundle} --backend onnxruntime --soak-minutes {{new}} --out report.zip",
            "0.01",
            "0.02",
            _reported,
        ),
        "predict": Case("predict --engines bundle {new}/a", "photos", "photos", _cached),
    }


def prepare(folder: Path) -> None:
    """Makes models, a bundle for CPUs, one for RTX, and images in an empty folder."""
    exits = (ExitConfig(1, "lph", 3),)
    config = LGViTConfig(
        family="vit",
        image_size=32,
        patch_size=8,
        hidden_size=32,
        num_blocks=2,
        num_heads=2,
        intermediate_size=64,
        num_classes=3,
        exits=exits,
        labels=("a", "b", "c"),
        preprocess=Preprocess(resize=32),
    )
    save_checkpoint(randomised(LGViT(config)), folder / "start.pt")
    rng = np.random.default_rng(0)
    for label in config.labels:
        (folder / "photos" / label).mkdir(parents=True)
        for i in range(16):
            pixels = rng.integers(0, 256, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / label / f"{i}.png")


def _bundles(folder: Path) -> States:
    return {"out": json.dumps(open_bundle(folder / "out").manifest.policy)}


def _builds(folder: Path) -> States:
    bundle = open_bundle(folder / "rtx")
    [(place, build)] = find_builds(folder / "rtx")
    if isinstance(build, BundleError):
        raise build
    if fault := build.fault(bundle):
        raise BundleError(fault)
    for name, graph in graphs_of(bundle).items():
        read_engine(place, build, name, graph)
    return {"rtx": f"level {build.optimization_level}"}


def _tuned(folder: Path) -> States:
    points = open_bundle(folder / "bundle").manifest.points
    record = json.loads((folder / "tune.json").read_text())
    return {
        "bundle": ", ".join(sorted(points)),
        "tune.json": ", ".join(record["points"]),
        "tune.png": _picture(folder / "tune.png"),
    }


def _trained(folder: Path) -> States:
    state = load_checkpoint(folder / "model.pt").state_dict()
    digest = hashlib.sha256(b"".join(t.numpy().tobytes() for t in state.values()))
    with (folder / "model.log.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    if any(len(row) != len(rows[0]) for row in rows):
        raise TrainingError("a line of the log is cut")
    finite_json.loads((folder / "model.eval.json").read_bytes())
    for resume in folder.glob("*.resume"):
        torch.load(resume, weights_only=True)
    pictures = ("model.log.png", "model.eval.png")
    return {"model.pt": digest.hexdigest()[:8]} | {p: _picture(folder / p) for p in pictures}


def _benched(folder: Path) -> States:
    record = json.loads((folder / "bench.json").read_text())
    page = (folder / "bench.html").read_text()
    if not page.rstrip().endswith("</html>"):
        raise BundleError("the page is cut")
    return {"bench.json": str(record["samples"]), "bench.html": "whole"}


def _reported(folder: Path) -> States:
    with zipfile.ZipFile(folder / "report.zip") as archive:
        if (broken := archive.testzip()) is not None:
            raise BundleError(f"{broken} in the archive is cut")
        return {"report.zip": str(json.loads(archive.read("steps.json"))["soak_minutes"])}


def _cached(folder: Path) -> States:
    for file in (folder.parent / "cache").glob("*/*.json"):
        finite_json.loads(file.read_bytes())
    return {}


def _picture(path: Path) -> str:
    with Image.open(path) as image:
        image.load()
    return "whole"


class Runs:
    """Runs commands as forks of this process, each in a folder with its own surroundings."""

    def __init__(self, root: Path, templates: Path) -> None:
        """Take an empty folder, and the one that ``prepare`` filled."""
        self.root, self.templates = root, templates

    def fresh(self, template: Path) -> Path:
        """Returns a new copy of a template's ``work``, ``cache`` and ``tmp``."""
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(template, self.root, symlinks=True)
        return self.root

    def start(self, arguments: list[str], *, until: int | None = None) -> int:
        """Starts a command and returns its process; it kills itself before a file operation."""
        sys.stdout.flush()
        sys.stderr.flush()
        if child := os.fork():
            with contextlib.suppress(OSError):
                os.setpgid(child, child)  # as the child does: whoever comes first
            return child
        self._become(arguments, until)

    def _become(self, arguments: list[str], until: int | None) -> NoReturn:
        status: Any = 1
        try:
            os.setpgid(0, 0)
            said = os.open(self.root / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(said, 1)
            os.dup2(said, 2)
            os.chdir(self.root / "work")
            os.environ["LGVIT_EDGE_CACHE"] = str(self.root / "cache")
            os.environ["TMPDIR"] = tempfile.tempdir = str(self.root / "tmp")
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
            steps = _Steps(until)
            sys.argv = ["lgvit-edge", *arguments]
            from lgvit_edge.cli.app import main

            try:
                sys.addaudithook(steps)
                main()
            except SystemExit as end:
                status = end.code or 0
            steps.over = True
            (self.root / "steps").write_text(str(steps.count))
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status if isinstance(status, int) else 1)

    def finish(self, arguments: list[str]) -> float:
        """Runs a command to its end; returns its seconds."""
        began = time.monotonic()
        _, status = os.waitpid(self.start(arguments), 0)
        if status:
            said = (self.root / "said").read_text(errors="replace").strip()[-500:]
            raise LGViTEdgeError(f"lgvit-edge {shlex.join(arguments)}: status {status}: {said}")
        return time.monotonic() - began

    def names(self) -> set[str]:
        """Returns every file and folder that there is."""
        found = {str(path.relative_to(self.root)) for path in self.root.rglob("*")}
        return found - {"said", "steps"}


class _Steps:
    """Counts file operations of this process; kills its group right before one of them."""

    def __init__(self, until: int | None) -> None:
        self.until, self.count, self.over = until, 0, False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if self.over or not (writes or event in _CHANGES):
            return
        if self.count == self.until:
            os.killpg(0, signal.SIGKILL)
        self.count += 1


def _kill_at(process: int, seconds: float) -> bool:
    """Kills a process and its children; returns whether it was still running."""
    due = time.monotonic() + seconds
    while time.monotonic() < due:
        if os.waitpid(process, os.WNOHANG)[0]:
            return False
        time.sleep(min(0.001, max(0.0, due - time.monotonic())))
    os.killpg(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    return os.WIFSIGNALED(status)


@dataclass(frozen=True)
class Command:
    """A command as it is when nobody kills it."""

    case: Case
    template: Path  # with the old outputs
    old: States
    new: States
    names: set[str]  # of all files, afterwards
    seconds: float
    steps: int  # file operations


def undisturbed(name: str, case: Case, runs: Runs, folder: Path) -> Command:
    """Runs a command twice, for the old and for the new outputs, and looks at both."""
    root = runs.fresh(runs.templates)
    if name in ("build", "tune", "bench", "device-report", "predict"):
        gpu = "--target rtx --no-engines --precision fp32 --out rtx"
        how = gpu if name == "build" else "--out bundle"
        runs.finish(shlex.split(f"export --ckpt start.pt {how}"))
    template = folder / name
    if name != "predict":  # its output is the cache
        runs.finish(case.line(case.old))
    old = case.look(root / "work")
    shutil.copytree(root, template)
    seconds = runs.finish(case.line(case.new))
    steps = int((root / "steps").read_text())
    return Command(case, template, old, case.look(root / "work"), runs.names(), seconds, steps)


def trials(command: Command, runs: Runs, count: int, rng: random.Random) -> Iterator[Trial]:
    """Kills a command ``count`` times, in turn by the clock and before a file operation.

    The moments of each kind lie in equal parts of the command, at a random place in each.
    """
    line = command.case.line(command.case.new)
    for number in range(count):
        root = runs.fresh(command.template)
        share = (number // 2 + rng.random()) / ((count + 1 - number % 2) // 2)
        if number % 2:
            moment = float(int(share * command.steps))
            _, status = os.waitpid(runs.start(line, until=int(moment)), 0)
            killed = os.WIFSIGNALED(status)
        else:
            moment = share * command.seconds
            killed = _kill_at(runs.start(line), moment)
        yield Trial(moment, killed, _fault(command, runs, root / "work", line))


def _fault(command: Command, runs: Runs, work: Path, line: list[str]) -> str:
    """Returns what is wrong with the outputs of a killed command, or after the next run."""
    try:
        for name, state in command.case.look(work).items():
            if state not in (command.old[name], command.new[name]):
                return f"{name} is neither old nor new: {state}"
        runs.finish(line)
        if (then := command.case.look(work)) != command.new:
            return f"expected {command.new} after the next run, found {then}"
    except Exception as error:  # whatever reads an output refuses it
        return f"{type(error).__name__}: {error}"
    if left := runs.names() ^ command.names:
        return f"left behind, or missing: {', '.join(sorted(left))}"
    return ""


def markdown(rows: dict[str, tuple[Command, list[Trial]]]) -> str:
    """Returns the table in Markdown, as in the results."""
    lines = [
        "| command | seconds | file operations | kills by the clock | before an operation | "
        "ended before | faults |",
        "|---" * 7 + "|",
    ]
    lines += [f"| {' | '.join(cells)} |" for cells in _cells(rows)]
    return "\n".join(lines) + "\n"


def _cells(rows: dict[str, tuple[Command, list[Trial]]]) -> Iterator[list[str]]:
    for name, (command, done) in rows.items():
        clock, step = ([trial for trial in done[kind::2] if trial.killed] for kind in (0, 1))
        missed, faults = len(done) - len(clock) - len(step), sum(bool(t.fault) for t in done)
        counts = map(str, (command.steps, len(clock), len(step), missed, faults))
        yield [name, f"{command.seconds:.1f}", *counts]


def main(
    trials_: Annotated[int, typer.Option("--trials", min=1, help="Kills, of all commands.")] = 200,
    only: Annotated[
        list[str] | None, typer.Option(help="Only this command; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the table to this .md file.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Kills commands at random moments, and prints what was wrong afterwards."""
    chosen = {name: case for name, case in cases().items() if name in (only or cases())}
    if wrong := set(only or ()) - set(chosen):
        raise UsageError(f"--only must be one of {', '.join(cases())}, found {min(wrong)}")
    check_outputs({"--out": out})
    record, rng = Record(json_file), random.Random(seed)
    for module in _LOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    rows: dict[str, tuple[Command, list[Trial]]] = {}
    with tempfile.TemporaryDirectory() as folder, progress_bar("killing") as progress:
        root = Path(folder)
        for name in ("work", "cache", "tmp"):
            (root / "start" / name).mkdir(parents=True)
        prepare(root / "start" / "work")
        runs, total = Runs(root / "run", root / "start"), 0
        for number, (name, case) in enumerate(chosen.items()):
            command, done = undisturbed(name, case, runs, root), list[Trial]()
            rows[name] = command, done
            share = trials_ // len(chosen) + (number < trials_ % len(chosen))
            for trial in trials(command, runs, share, rng):
                done.append(trial)
                total += 1
                progress(total, trials_, name)
                if trial.fault:
                    say(f"{name}, killed at {trial.moment:g}: {trial.fault}")
    output = table("command", numbers=_HEADERS)
    for cells in _cells(rows):
        output.add_row(*cells)
    console.print(output)
    if out is not None:
        write(out, markdown(rows))
    record.write(
        trials={name: [vars(trial) for trial in done] for name, (_, done) in rows.items()},
        seed=seed,
    )
    if any(trial.fault for _, done in rows.values() for trial in done):
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
