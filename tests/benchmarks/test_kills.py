"""Commands that are killed: a short run of the program that kills them, and what it would find."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lgvit_edge.benchmarks.experiments.kills import Case, Command, _fault
from lgvit_edge.errors import BundleError


@pytest.mark.slow
def test_killed_commands_leave_the_old_or_the_new(tmp_path: Path) -> None:
    module, record = "lgvit_edge.benchmarks.experiments.kills", tmp_path / "kills.json"
    options = "--trials 4 --only bench --only tune --seed 1 --json"
    done = subprocess.run(
        [sys.executable, "-m", module, *options.split(), str(record)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    trials = json.loads(record.read_text())["trials"]
    assert [len(trials[name]) for name in ("bench", "tune")] == [2, 2]
    assert sum(trial["killed"] for name in trials for trial in trials[name]) >= 2


class _Undisturbed:
    """A command that writes ``new``, and perhaps another file."""

    def __init__(self, work: Path, also: str | None, state: str) -> None:
        self.work, self.also, self.state = work, also, state

    def finish(self, line: list[str]) -> None:
        (self.work / "out").write_text(self.state)
        if self.also:
            (self.work / self.also).touch()

    def names(self) -> set[str]:
        return {path.name for path in self.work.iterdir()}


def _broken(folder: Path) -> dict[str, str]:
    raise BundleError("not a bundle")


def _read(folder: Path) -> dict[str, str]:
    return {"out": (folder / "out").read_text()}


@pytest.mark.parametrize(
    ("left", "also", "then", "look", "fault"),
    [
        ("old", None, "new", _read, ""),
        ("new", None, "new", _read, ""),
        ("half", None, "new", _read, "out is neither old nor new: half"),
        ("old", None, "old", _read, "expected {'out': 'new'} after the next run, found {'out': '"),
        ("old", ".x.partial", "new", _read, "left behind, or missing: .x.partial"),
        ("old", None, "new", _broken, "BundleError: not a bundle"),
    ],
)
def test_what_is_wrong_after_a_kill_is_found(
    left: str,
    also: str | None,
    then: str,
    look: Callable[[Path], dict[str, str]],
    fault: str,
    tmp_path: Path,
) -> None:
    (tmp_path / "out").write_text(left)
    runs: Any = _Undisturbed(tmp_path, also, then)
    old, new = {"out": "old"}, {"out": "new"}
    case = Case("", "", "", look)
    command = Command(case, tmp_path, old, new, {"out"}, seconds=1.0, steps=1)
    found = _fault(command, runs, tmp_path, [])
    assert found.startswith(fault) and bool(found) == bool(fault)
