"""Runs the wheel on aarch64 by emulation, and compares what it computes with this machine.

    make dev
    sudo apt install qemu-user-static debootstrap
    sudo .venv/bin/python tools/arm64.py

It makes a small Debian for aarch64 in ``build/arm64``, which later runs use again, and installs the
wheel there. A bundle that is exported here runs there: doctor, verify, predict, the logits of all
exits on every backend, TensorRT-RTX's builder, and the tests that need no torch. ``report.md`` and
``report.json`` in that folder say what became of it, and the other files what was said. Emulated
times mean nothing, so none is kept.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import numpy as np
from emulated import Device, Problem, check_here, emulation, here, last_words, make_device
from PIL import Image

from lgvit_edge._support.outputs import write, write_json
from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.images.spec import Preprocess
from lgvit_edge.policies.scores import difference

SOURCES = Path(__file__).resolve().parents[1]
PACKAGE = ("lgvit_edge", "export", "runtime", "benchmarks")
EXTRAS = ("cpu", "openvino", "rtx")  # that a device without JetPack may use
BACKENDS = ("onnxruntime", "openvino")  # that need no GPU
FOR_TESTS = ("pytest", "pytest-xdist", "onnx", "optuna", "scipy", "Jinja2", "matplotlib")
# What a device does. Tests in them that need torch or a C compiler skip.
TESTS = (
    *("_support", "architecture", "bundle", "images", "machine", "policies", "tuning"),
    *(f"runtime/test_{name}.py" for name in ("backends", "choice", "deadline", "devices")),
    *(f"runtime/test_{name}.py" for name in ("finite", "forks", "openvino", "passes")),
    *(f"runtime/test_{name}.py" for name in ("precision", "runtime", "session_manners")),
    *(f"runtime/test_{name}.py" for name in ("streams", "waiting", "wrong_use")),
)
VENV, WORK = "/opt/venv", "/opt/work"
TOLERANCE = 1e-4  # of logits, relative where they are larger than 1


@dataclass
class Step:
    """Holds what became of one command there: worked, failed, ran out of time, not run."""

    name: str
    outcome: str
    detail: str


@dataclass
class Report:
    """Holds what is written in the end."""

    made: str
    emulator: str
    system: str
    bundle: str
    packages: dict[str, str] = field(default_factory=dict)  # there
    host_packages: dict[str, str] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    logits: list[dict[str, Any]] = field(default_factory=list)  # by backend
    tests: list[dict[str, str]] = field(default_factory=list)  # that failed


class Trial:
    """Tries everything on the device, and fills the report."""

    def __init__(self, device: Device, report: Report, folder: Path) -> None:
        """Keep in ``folder`` what each step said."""
        self.device, self.report, self.folder = device, report, folder
        self.work = device.root / WORK.lstrip("/")

    def step(self, name: str, *command: str, seconds: float = 1800, **variables: str) -> str | None:
        """Run one command there and note its outcome; returns what it said, None if it failed."""
        print(name, end=" ... ", flush=True)
        try:
            done = self.device.run(*command, seconds=seconds, **variables)
            said, all_said = done.stdout, done.stdout + done.stderr
            outcome = "failed" if done.returncode else "worked"
        except subprocess.TimeoutExpired as late:
            parts = [part.decode(errors="replace") for part in (late.stdout, late.stderr) if part]
            said = all_said = "".join(parts)
            outcome = "ran out of time"
        (self.folder / file_of(name)).write_text(all_said)
        self.report.steps.append(Step(name, outcome, ""))
        print(outcome, flush=True)
        if outcome != "worked":
            self.note(last_words(all_said))
        return said if outcome == "worked" else None

    def note(self, detail: str, *, good: bool = True) -> None:
        """Say what the last step found, and perhaps that it is not good."""
        step = self.report.steps[-1]
        step.detail = detail
        if not good:
            step.outcome = "failed"
        print(f"    {detail}" if good else f"    failed: {detail}", flush=True)

    def install(self, wheel: Path) -> None:
        """Install the wheel, each extra on its own, and what the tests need."""
        shutil.copy(wheel, self.work)
        wheel_there = f"{WORK}/{wheel.name}"
        python = f"{VENV}/bin/python"
        if not (self.device.root / VENV.lstrip("/") / "bin" / "pip").exists():
            self.step("make an environment", "python3", "-m", "venv", "--clear", VENV)
        pip = (python, "-m", "pip", "--disable-pip-version-check")
        install = (*pip, "install", "--quiet")
        self.step("install the wheel", *install, wheel_there)
        # pip leaves a wheel of the same version as it is, and an earlier run's may be there.
        again = ("--force-reinstall", "--no-deps", wheel_there)
        self.step("install it in the place of an earlier one", *install, *again)
        for extra in EXTRAS:
            self.step(f"install the extra {extra}", *install, f"{wheel_there}[{extra}]")
        self.step("install what tests need", *install, *FOR_TESTS)
        if listed := self.step("list packages", *pip, "list", "--format=json"):
            self.report.packages = {row["name"]: row["version"] for row in json.loads(listed)}

    def doctor(self) -> list[str]:
        """Let doctor say what runs there; returns the backends that do and need no GPU."""
        self.step("doctor --engines", "lgvit-edge", "doctor", "--engines", f"{WORK}/cpu")
        if (said := self.step("doctor", "lgvit-edge", "doctor", "--json")) is None:
            return []
        found = json.loads(said)
        running = [row["name"] for row in found["backends"] if row["runs"]]
        self.note(f"runs here: {', '.join(running) or 'nothing'}")
        return [name for name in BACKENDS if any(row.startswith(name) for row in running)]

    def verify(self, backend: str) -> None:
        """Run the bundle's samples in a process with limits."""
        limits = ("--backend", backend, "--seconds", "1500", "--json")
        said = self.step(f"verify on {backend}", "lgvit-edge", "verify", f"{WORK}/cpu", *limits)
        if said is not None:
            found = json.loads(said)
            gap, most = found["max_difference"], found["tolerance"]
            self.note(f"at most {gap:.2g} from PyTorch's logits, tolerance {most:g}")

    def predict(self) -> None:
        """Compare labels and exits of a few images with those of this machine."""
        words = ("--backend", "onnxruntime", "--json")
        there = ("predict", f"{WORK}/photos", "--engines", f"{WORK}/cpu", *words)
        said = self.step("predict", "lgvit-edge", *there)
        photos, bundle = str(self.work / "photos"), str(self.work / "cpu")
        mine = here("-m", "lgvit_edge", "predict", photos, "--engines", bundle, *words)
        if said is not None:
            answers = [
                [(row["label"], row["exit"]) for row in json.loads(text)] for text in (mine, said)
            ]
            same = sum(a == b for a, b in zip(*answers, strict=True))
            text = f"{same} of {len(answers[0])} images have the label and the exit of the host"
            self.note(text, good=same == len(answers[0]))

    def logits(self, backend: str) -> None:
        """Compare the logits of all exits with those of ONNX Runtime here, and with PyTorch's."""
        file, python = f"logits-{backend}.npz", f"{VENV}/bin/python"
        there = (f"{WORK}/all_logits.py", f"{WORK}/cpu", backend, f"{WORK}/{file}")
        host = self.work / "logits-host.npz"
        if not host.exists():
            here("tools/all_logits.py", str(self.work / "cpu"), "onnxruntime", str(host))
        if self.step(f"logits and parity on {backend}", python, *there) is None:
            return
        with np.load(host) as mine, np.load(self.work / file) as theirs:
            ours, wanted = theirs["logits"], mine["logits"]
            row = {
                "backend": backend,
                "images": len(ours),
                "from_host": [difference(ours[:, i], wanted[:, i]) for i in range(ours.shape[1])],
                "from_torch": difference(ours, theirs["torch"]),
                "parity": float(theirs["parity"]),
            }
        self.report.logits.append(row)
        most = max(row["from_host"])
        self.note(
            f"at most {most:.2g} from the host's, parity {row['parity']:.2g}",
            good=most <= TOLERANCE,
        )

    def build(self, seconds: float) -> None:
        """Compile engines with TensorRT-RTX."""
        words = ("lgvit-edge", "build", f"{WORK}/rtx", "--json")
        if self.step("TensorRT-RTX builds engines", *words, seconds=seconds) is not None:
            engines = list(self.work.glob("rtx/engines/*/*.engine"))
            size = sum(engine.stat().st_size for engine in engines)
            self.note(f"{len(engines)} engines, {size / 1e6:.1f} MB", good=bool(engines))

    def test(self, seconds: float) -> None:
        """Run the tests that need no torch, on the wheel, with bundles made here."""
        copy = ("tests", "pyproject.toml", "constraints.txt", "constraints-oldest.txt")
        for name in copy:
            _copy(SOURCES / name, self.work / name)
        files = [f"tests/{name}" for name in TESTS]
        made = self.work / "made"
        made.mkdir()
        print("make the bundles of the tests", flush=True)
        here("-m", "pytest", "-n0", "-q", "--setup-only", *files, LGVIT_EDGE_MADE=str(made))
        pytest = (f"{VENV}/bin/python", "-m", "pytest", "-p", "without_torch", "-q", "-rfE")
        variables = {"LGVIT_EDGE_MADE": f"{WORK}/made", "PYTHONPATH": f"{WORK}/tests/fakes"}
        end = time.monotonic() + seconds
        for name, file in zip(TESTS, files, strict=True):
            left = end - time.monotonic()
            if left < 1:
                self.report.steps.append(Step(f"tests/{name}", "not run", "no time was left"))
                continue
            words = ("env", "--chdir", WORK, *pytest, file)
            self.step(f"tests/{name}", *words, seconds=left, **variables)
            said = (self.folder / file_of(f"tests/{name}")).read_text()
            found = outcomes(said)
            self.report.tests += found["failed"]
            if found["counts"]:
                counts = found["counts"].items()
                self.note(", ".join(f"{number} {what}" for what, number in counts))
            elif self.report.steps[-1].outcome == "ran out of time":
                dots = re.findall(r"^[.sxXFE]+", said, re.MULTILINE)
                self.note(f"{''.join(dots).count('.')} passed until then")


def file_of(step: str) -> str:
    """Return the name of the file that holds what a step said."""
    return f"{re.sub('[^a-z0-9]+', '-', step.lower())}.txt"


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "results"))
    else:
        shutil.copy(source, target)


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a clean copy: in place, setuptools would pack an earlier build too."""
    with tempfile.TemporaryDirectory() as copy:
        for name in (*PACKAGE, "pyproject.toml", "README.md", "LICENSE"):
            _copy(SOURCES / name, Path(copy, name))
        here("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), copy)
    (wheel,) = folder.glob("lgvit_edge-*.whl")
    return wheel


def export_bundles(folder: Path, given: Path | None) -> str:
    """Put a bundle for CPUs into ``cpu`` and one for RTX cards into ``rtx``; returns what it is.

    Without a ``given`` one it has random weights, and a head of either kind.
    """
    from lgvit_edge.export import ExportOptions, export_bundle
    from lgvit_edge.model import LGViT
    from lgvit_edge.model.randomised import randomised

    config = LGViTConfig(
        family="vit",
        image_size=64,
        patch_size=8,
        hidden_size=192,
        num_blocks=6,
        num_heads=3,
        intermediate_size=768,
        num_classes=10,
        exits=(ExitConfig(2, "lph", 3), ExitConfig(4, "gah", 2)),
        preprocess=Preprocess(resize=72),
    )
    model = randomised(LGViT(config))
    export_bundle(model, folder / "rtx", ExportOptions(target="rtx"))
    if given is None:
        export_bundle(model, folder / "cpu", ExportOptions(batch=(1, 1, 4)))
        return "6 blocks of ViT-Tiny's width on 64 x 64 pixels, random weights, exits after 2 and 4"
    _copy(given, folder / "cpu")
    manifest = open_bundle(given).manifest
    return f"{len(manifest.segments)} segments, {manifest.num_classes} classes, {given.name}"


def write_photos(folder: Path, count: int = 4) -> None:
    """Write images of noise, each finer than the one before."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        noise = Image.fromarray(rng.integers(0, 256, (3 << i, 4 << i, 3), np.uint8))
        noise.resize((160, 120)).save(folder / f"{i}.png")


def outcomes(said: str) -> dict[str, Any]:
    """Return, of what pytest said, how many tests passed, failed or skipped, and which failed."""
    summaries = re.findall(r"^=*\s*((?:\d+ \w+(?:, )?)+) in [\d.]+s", said, re.MULTILINE)
    failed = re.findall(r"^(?:FAILED|ERROR) tests/(\S+)(?: - (.*))?$", said, re.MULTILINE)
    pairs = re.findall(r"(\d+) (\w+)", summaries[-1]) if summaries else []
    return {
        "counts": {what: int(number) for number, what in pairs},
        "failed": [{"test": test, "why": why} for test, why in failed],
    }


def in_markdown(report: Report) -> str:
    """Return the report as a page."""
    lines = [
        "# lgvit-edge on aarch64, emulated",
        "",
        f"Made by `tools/arm64.py` on {report.made}: {report.system}, run by {report.emulator} in "
        "user mode on an x86-64 machine. **This is emulation.** It tells whether the same is "
        "computed, and nothing of speed: no time was kept.",
        "",
        f"The bundle: {report.bundle}.",
        "",
        "| step | outcome | |",
        "|---|---|---|",
        *(f"| {s.name} | {s.outcome} | {s.detail.replace('|', '/')} |" for s in report.steps),
    ]
    if report.logits:
        exits = len(report.logits[0]["from_host"]) - 2
        names = [*(f"exit {i + 1}" for i in range(exits)), "final", "baseline"]
        columns = ["backend there", "images", *names, "all, from PyTorch"]
        lines += ["", "Largest differences of logits from those of ONNX Runtime on the host,"]
        lines += ["relative where a logit is larger than 1:", "", f"| {' | '.join(columns)} |"]
        lines += ["|---" * len(columns) + "|"]
        for row in report.logits:
            gaps = [f"{gap:.2g}" for gap in (*row["from_host"], row["from_torch"])]
            lines += [f"| {row['backend']} | {row['images']} | {' | '.join(gaps)} |"]
    if report.tests:
        lines += ["", "Tests that failed there:", ""]
        lines += [f"- `{row['test']}`: {row['why']}" for row in report.tests]
    lines += ["", "| package | there | on the host |", "|---|---|---|"]
    named = {re.split(r"[^\w.-]", text)[0].lower() for text in requires("lgvit-edge") or []}
    for name in sorted(report.packages, key=str.lower):
        if name.lower().replace("_", "-") in named:
            versions = (report.packages[name], report.host_packages.get(name, ""))
            lines += [f"| {name} | {' | '.join(versions)} |"]
    return "\n".join(lines) + "\n"


def options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=SOURCES / "build" / "arm64")
    parser.add_argument("--engines", type=Path, help="a bundle for CPUs; default: one is exported")
    parser.add_argument("--cpu", default="neoverse-n1", help="that QEMU emulates, such as max")
    parser.add_argument("--mirror", help="Debian's archive; default: the one that apt has here")
    parser.add_argument("--suite", help="Debian's suite; default: the one that runs here")
    parser.add_argument("--test-minutes", type=float, default=90, help="limit; 0 runs no tests")
    parser.add_argument("--build-minutes", type=float, default=20, help="limit; 0 builds nothing")
    return parser.parse_args()


def main() -> int:
    """Run all steps and write the report; exit status 1 where one did not work."""
    given = options()
    check_here()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with emulation(), tempfile.TemporaryDirectory() as scratch:
        device = make_device(folder, given.cpu, given.mirror, given.suite)
        work = device.root / WORK.lstrip("/")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        write_photos(work / "photos")
        _copy(SOURCES / "tools" / "all_logits.py", work / "all_logits.py")
        qemu = subprocess.run(["qemu-aarch64-static", "--version"], capture_output=True, text=True)
        debian = (device.root / "etc" / "debian_version").read_text().strip()
        machine = device.run("uname", "-m").stdout.strip()
        report = Report(
            made=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
            emulator=qemu.stdout.splitlines()[0].replace("version ", ""),
            system=f"Debian {debian} for {machine} on a {given.cpu}",
            bundle=export_bundles(work, given.engines),
        )
        listed = here("-m", "pip", "list", "--format=json")
        report.host_packages = {row["name"]: row["version"] for row in json.loads(listed)}
        trial = Trial(device, report, folder)
        try:
            trial.install(build_wheel(Path(scratch)))
            for backend in trial.doctor():
                trial.verify(backend)
                trial.logits(backend)
            trial.predict()
            if given.build_minutes:
                trial.build(given.build_minutes * 60)
            if given.test_minutes:
                trial.test(given.test_minutes * 60)
        finally:
            write_json(folder / "report.json", asdict(report))
            write(folder / "report.md", in_markdown(report))
    print(f"wrote {folder / 'report.md'}")
    return int(any(step.outcome != "worked" for step in report.steps))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Problem as problem:
        sys.exit(f"error: {problem}")
