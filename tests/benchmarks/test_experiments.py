"""Every script in the folder of experiments starts, and answers a wrong option in one line."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import runpy
import sys
from pathlib import Path

import pytest
from pytest import MonkeyPatch

from lgvit_edge.benchmarks import experiments
from lgvit_edge.benchmarks.experiments.frame import Record
from lgvit_edge.benchmarks.measure import command_line
from lgvit_edge.errors import UsageError

FILES = sorted(Path(experiments.__path__[0]).glob("[!_]*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.stem))
def test_help_is_answered(
    file: Path, monkeypatch: MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, as ``python -m`` would: PyTorch takes longer to start than all of them."""
    monkeypatch.setattr(sys, "argv", [str(file), "--help"])
    is_script = "__main__" in file.read_text(encoding="utf-8")
    with pytest.raises(SystemExit) if is_script else contextlib.nullcontext() as end:
        runpy.run_path(str(file), run_name="__main__")
    assert not is_script or not end.value.code
    assert ("Usage:" in capsys.readouterr().out) == is_script


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.stem))
def test_an_output_that_could_not_be_written_is_refused_first(file: Path, tmp_path: Path) -> None:
    """Before what is named is even looked for."""
    main = getattr(importlib.import_module(f"{experiments.__name__}.{file.stem}"), "main", None)
    parameters = inspect.signature(main).parameters if main else {}
    given = {n: tmp_path / "none" for n, p in parameters.items() if p.default is p.empty}
    given |= {"installations": ["python:bundle"] * 2} if "installations" in parameters else {}
    for name in {"json_file", "out", "plot", "names"} & set(parameters):
        assert main is not None
        with pytest.raises(UsageError, match="^--[a-z]+: (expected a folder, |cannot write to )"):
            main(**given | {name: FILES[0] / "x.json"})


def test_no_record_is_written_unless_asked_for(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Record(None).write(rows=[])
    assert not list(tmp_path.iterdir())


def test_a_record_names_the_command_that_repeats_it(
    monkeypatch: MonkeyPatch,
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
