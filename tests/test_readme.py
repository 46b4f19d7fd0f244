"""The README's code runs, and its commands exist."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from typer.main import get_command

from lgvit_edge.cli import app

README = Path(__file__).parent.parent / "README.md"


def test_the_embedding_example_runs(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bundle, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["logits"].shape == (1, 4, 5)  # type: ignore[attr-defined]


def test_the_commands_and_options_exist() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    docs = README.parent / "docs"
    pages = [README, docs / "tensorrt.md", docs / "training.md", docs / "tuning.md"]
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
