"""Every script in the folder of experiments starts, and answers a wrong option in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lgvit_edge.benchmarks import experiments
from lgvit_edge.benchmarks.experiments.frame import Record
from lgvit_edge.benchmarks.measure import command_line
from lgvit_edge.errors import UsageError

FILES = sorted(Path(experiments.__path__[0]).glob("[!_]*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.stem))
def test_help_is_answered(file: Path) -> None:
    module = f"{experiments.__name__}.{file.stem}"
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    is_script = "__main__" in file.read_text(encoding="utf-8")
    assert ("Usage:" in done.stdout) == is_script


def test_a_record_that_could_not_be_written_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--json: no such folder: .*nowhere"):
        Record(tmp_path / "nowhere" / "record.json")
    Record(None).write(rows=[])
    assert not list(tmp_path.iterdir())


def test_a_record_names_the_command_that_repeats_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from importlib.machinery import ModuleSpec

    monkeypatch.setattr(sys, "argv", ["/anywhere/script", "--engines", "my out"])
    for module, start in (
        (None, "script"),
        ("lgvit_edge.__main__", "python -m lgvit_edge"),
        ("lgvit_edge.benchmarks.experiments.rivals",) * 2,
    ):
        spec = ModuleSpec(module, None) if module else None
        monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
        assert command_line().endswith(f"{start} --engines 'my out'")
