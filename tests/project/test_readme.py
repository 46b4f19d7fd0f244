"""The README's code runs, and its commands exist."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.main import get_command

from lgvit_edge.cli.app import app
from lgvit_edge.runtime import Session

README = Path(__file__).parents[2] / "README.md"


def test_the_embedding_example_runs(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bundle, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["logits"].shape == (1, 4, 5)  # type: ignore[attr-defined]


def test_the_examples_of_the_runtime_run(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bundle, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    page = README.parent / "docs" / "runtime.md"
    first, *others = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    frames = [np.zeros((48, 64, 3), np.uint8)] * 3
    log = io.StringIO()
    names = {"frame": frames[0], "frames": frames, "gate": frames, "yard": frames, "log": log}
    exec(first, names | {"json": json})
    with Session.open("out/", warm_up=True) as session:
        names |= {"session": session, "json": json}
        for code in others:
            exec(code, names)
        assert session.stats.images == 1 + 1 + 3 + 6 + 2
        session.predict(frames[0])
    assert json.loads(log.getvalue())["label"] in "abcde"


def test_the_commands_and_options_exist() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    docs = README.parent / "docs"
    names = ("runtime", "tensorrt", "training", "tuning")
    pages = [README, *(docs / f"{name}.md" for name in names)]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    shown = re.findall(r"lgvit-edge (\w+)([^\n|`]*)", text)
    shown = [(name, rest) for name, rest in shown if name in commands]
    assert {name for name, _ in shown} == set(commands)
    for name, rest in shown:
        known = {
            option for p in commands[name].params for option in [*p.opts, *p.secondary_opts]
        } | {"--help"}
        for option in re.findall(r"--[a-z-]+", rest):
            assert option in known, f"lgvit-edge {name} has no {option}"
