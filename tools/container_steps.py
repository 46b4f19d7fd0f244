"""Runs the steps of containers/x86.Dockerfile without a container engine, and without root.

    make dev
    sudo apt-get update
    .venv/bin/python tools/container_steps.py

A temporary folder stands for the image's root: what the file copies, builds and installs into
folders of its own lies there. Packages of apt are not installed: that Debian has them is checked.
What changes users is not run. In the end the image's program answers ``--help``, its health check
is tried with and without a server, and torch must not be there. The exit status is 1 if a step
fails.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDS_ROOT = ("useradd", "groupadd", "usermod", "chown")


class Failed(Exception):
    """A step that did not work, with the reason."""


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile.

    Attributes:
        name: such as ``RUN``.
        value: the rest of it, on one line.
        line: where it begins, from 1.
    """

    name: str
    value: str
    line: int

    @property
    def words(self) -> list[str]:
        """The value as words, of its JSON form too, without options such as ``--from``."""
        if self.value.startswith("["):
            return [str(word) for word in json.loads(self.value)]
        return [word for word in shlex.split(self.value) if not word.startswith("--")]

    def option(self, name: str) -> str | None:
        """Return the value of an option such as ``--from=wheel``; None without it."""
        found = re.match(rf"(?:--\S+\s+)*?--{name}=(\S+)", self.value)
        return found[1] if found else None


def parse(text: str) -> list[Instruction]:
    """Return the instructions of a Dockerfile, in order, with its ARGs replaced in FROM."""
    instructions: list[Instruction] = []
    arguments: dict[str, str] = {}
    parts: list[str] = []
    started = 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or not line.strip():
            continue
        if not parts:
            started = number
        parts.append(line.strip().removesuffix("\\").strip())
        if line.rstrip().endswith("\\"):
            continue
        name, _, value = " ".join(parts).partition(" ")
        parts = []
        if name == "ARG":
            key, _, default = value.partition("=")
            arguments[key] = default
        if name == "FROM":
            value = re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], value)
        instructions.append(Instruction(name, value, started))
    return instructions


def stages(instructions: list[Instruction]) -> dict[str, list[Instruction]]:
    """Return the instructions of each stage, FROM being the first, by its name or its number."""
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for instruction in instructions:
        if instruction.name == "FROM":
            current = found.setdefault(
                _after(instruction.value.split(), "AS") or str(len(found)), []
            )
        current.append(instruction)
    return found


def own_folders(instructions: list[Instruction]) -> list[str]:
    """Return the folders that a file makes, longest first: those that the temporary root gets."""
    folders = set()
    for instruction in instructions:
        if instruction.name in ("WORKDIR", "VOLUME"):
            folders.add(instruction.words[0])
        elif instruction.name == "COPY" and instruction.words[-1].startswith("/"):
            folders.add(instruction.words[-1].rstrip("/"))
        elif instruction.name == "ENTRYPOINT":
            folders.add(str(Path(instruction.words[0]).parents[1]))
        elif instruction.name == "RUN":
            folders |= set(re.findall(r"--wheel-dir (\S+)", instruction.value))
    return sorted(folders, key=len, reverse=True)


def packages(command: str) -> list[str]:
    """Return the packages that ``apt-get install`` names in a command."""
    return [word for word in shlex.split(command)[2:] if not word.startswith("-")]


def shipped(path: str, ignore: str) -> bool:
    """Return whether ``.dockerignore`` lets a path of the project into a build; the last rule wins.

    Knows the rules that the project's file is made of: names, ``*`` and ``**/NAME``.
    """
    kept = True
    for rule in ignore.splitlines():
        if not rule or rule.startswith("#"):
            continue
        name = rule.removeprefix("!")
        if name.startswith("**/"):
            hit = any(Path(part).match(name[3:]) for part in Path(path).parts)
        else:
            hit = name == "*" or path == name or path.startswith(f"{name}/")
        if hit:
            kept = rule.startswith("!")
    return kept


@dataclass
class Stage:
    """The folder that stands for the root of one stage's image."""

    root: Path
    folders: list[str]
    workdir: str = "/"
    variables: dict[str, str] = field(default_factory=dict)

    def inside(self, text: str) -> str:
        """Return text with the folders of the image as those of the temporary root."""
        for folder in self.folders:
            text = re.sub(
                rf"(?<![\w./-]){re.escape(folder)}(?![\w.-])", f"{self.root}{folder}", text
            )
        return text

    def path(self, text: str) -> Path:
        """Return where a path of the image lies."""
        return self.root / os.path.join(self.workdir, text).lstrip("/")

    def call(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command as in the image: with its variables, in its working folder."""
        place = self.path(".")
        place.mkdir(parents=True, exist_ok=True)
        return subprocess.run(
            command, cwd=place, env=self.environment(), capture_output=True, text=True
        )

    def environment(self) -> dict[str, str]:
        """Return the variables of a step: this machine's, and the file's own."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("VIRTUAL_")}
        path = f"{self.root}/.tools:{os.environ['PATH']}"
        return kept | {key: self.inside(v) for key, v in self.variables.items()} | {"PATH": path}


def main() -> int:
    """Run the steps and print each with what became of it; return the exit status."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("file", nargs="?", type=Path, default=ROOT / "containers/x86.Dockerfile")
    file = options.parse_args().file
    instructions = parse(file.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="container-") as folder:
        try:
            for said in run(instructions, Path(folder)):
                print(said, flush=True)
        except Failed as error:
            print(f"FAILED {error}")
            return 1
    print("every step worked")
    return 0


def run(instructions: list[Instruction], folder: Path) -> Iterator[str]:
    """Run all stages in a folder; yield a line for each step."""
    made: dict[str, Stage] = {}
    folders = own_folders(instructions)
    for name, steps in stages(instructions).items():
        stage = made[name] = Stage(folder / name, folders)
        tools = stage.root / ".tools"
        tools.mkdir(parents=True)
        for program in ("python", "python3"):
            (tools / program).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
            (tools / program).chmod(0o755)
        for step in steps:
            yield from (f"line {step.line}: {said}" for said in _step(step, stage, made))
    yield from _finished(steps, stage)


def _step(step: Instruction, stage: Stage, made: dict[str, Stage]) -> Iterator[str]:
    if step.name == "FROM":
        wanted = re.search(r"python:(\d+\.\d+)", step.value)
        here = "{}.{}".format(*sys.version_info)
        if wanted and wanted[1] != here:
            raise Failed(f"{step.value}: run this with Python {wanted[1]}, not {here}")
        yield f"{step.value}: Python {here} of this machine"
    elif step.name == "WORKDIR":
        stage.workdir = step.words[0]
    elif step.name == "ENV":
        stage.variables |= dict(word.split("=", 1) for word in step.words)
    elif step.name == "COPY":
        source = step.option("from")
        yield _copy(step.words, stage, made[source] if source else None)
    elif step.name == "RUN":
        for command in step.value.split(" && "):
            yield _command(command, stage)


def _copy(words: list[str], stage: Stage, other: Stage | None) -> str:
    *sources, target = words
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    into = len(sources) > 1 or target.endswith("/")
    for source in sources:
        place = other.path(source) if other else ROOT / source
        if not place.exists() or not (other or shipped(source, ignore)):
            raise Failed(f"COPY {source}: it is not there, or .dockerignore keeps it out")
        goal = stage.path(target)
        if place.is_dir():
            shutil.copytree(
                place, goal, dirs_exist_ok=True, ignore=None if other else _ignored(ignore)
            )
        else:
            (goal if into else goal.parent).mkdir(parents=True, exist_ok=True)
            shutil.copy(place, goal)
    return f"copied {', '.join(sources)} to {target}"


def _ignored(ignore: str) -> Callable[[str, list[str]], list[str]]:
    def names(folder: str, entries: list[str]) -> list[str]:
        place = Path(folder).relative_to(ROOT)
        return [entry for entry in entries if not shipped(str(place / entry), ignore)]

    return names


def _command(command: str, stage: Stage) -> str:
    first = command.split()[0]
    if first == "apt-get":
        if (names := packages(command)) and command.split()[1] == "install":
            _check_packages(names)
            return f"apt-get install: Debian has all {len(names)}: {' '.join(names)}"
        return f"{command}: not run"
    if first in NEEDS_ROOT or "/var/lib/apt" in command:
        return f"{command}: not run, it changes the system"
    done = stage.call(["/bin/sh", "-ec", stage.inside(command)])
    if done.returncode:
        raise Failed(f"{command}: status {done.returncode}\n{done.stdout[-2000:]}{done.stderr}")
    return f"{command}: worked"


def _check_packages(names: list[str]) -> None:
    for name in names:
        told = subprocess.run(["apt-cache", "policy", name], capture_output=True, text=True).stdout
        if not re.search(r"Candidate: (?!\(none\))", told):
            raise Failed(f"Debian has no package {name} (or: sudo apt-get update)")


def _finished(steps: list[Instruction], stage: Stage) -> Iterator[str]:
    """Try what the image is started, stopped and watched with."""
    last = {step.name: step for step in steps}
    entry = [stage.inside(word) for word in last["ENTRYPOINT"].words]
    done = stage.call([*entry, "--help"])
    if done.returncode or "--config" not in done.stdout:
        raise Failed(f"{' '.join(entry)} --help: {done.stdout[-500:]}{done.stderr}")
    yield f"{' '.join(last['ENTRYPOINT'].words)} --help: worked"
    python = str(Path(entry[0]).with_name("python"))
    if stage.call([python, "-c", "import torch"]).returncode == 0:
        raise Failed("torch is installed")
    done = stage.call([python, "-m", "pip", "check"])
    if done.returncode:
        raise Failed(f"pip check: {done.stdout}")
    size = stage.call(["du", "-sm", str(Path(entry[0]).parents[1])]).stdout.split()[0]
    yield f"the environment has no torch, nothing is missing in it, and it takes {size} MB"
    health = json.loads(last["HEALTHCHECK"].value.partition("CMD ")[2])
    with HTTPServer(("127.0.0.1", 0), _Health) as server:
        command = [stage.inside(word) for word in health]
        command[-1] = command[-1].replace("8765", str(server.server_port))
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        good = stage.call(command).returncode
        thread.join()
    bad = stage.call(command).returncode
    if good or not bad:
        raise Failed(f"the health check ends with {good} beside a server, and {bad} without")
    yield "HEALTHCHECK: worked beside a server, failed without"


class _Health(BaseHTTPRequestHandler):
    """Answers /healthz, as the live page does."""

    def do_GET(self) -> None:  # noqa: N802 - the library's name
        self.send_response(200 if self.path == "/healthz" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _after(words: list[str], word: str) -> str | None:
    return words[words.index(word) + 1] if word in words else None


if __name__ == "__main__":
    sys.exit(main())
