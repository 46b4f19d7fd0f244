"""What a pipe gets: whole labels and paths, in whatever encoding it has."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from processes import lgvit_edge as run
from pytest import MonkeyPatch
from small import vit, write_photos

from lgvit_edge._support.terminal import console
from lgvit_edge.architecture.config import ExitConfig
from lgvit_edge.cli.app import main
from lgvit_edge.export import export_bundle
from lgvit_edge.model import LGViT, save_checkpoint
from lgvit_edge.model.randomised import randomised

pytestmark = pytest.mark.slow
# Longer than any terminal is wide, with letters that ASCII has not, and one that Latin-1 has not.
LONG = "éž" + "x" * 120
LABELS = tuple(f"{LONG}{letter}" for letter in "abc")
LINES = (  # a line, what it must show whole; later lines take what earlier ones made
    ("info start.pt", "lph"),
    (f"export --ckpt start.pt --out {LONG}/new", f"{LONG}/new"),
    (f"info {LONG}/bundle", f"{LONG}/bundle"),
    (f"verify {LONG}/bundle", f"{LONG}/bundle"),
    (f"predict --engines {LONG}/bundle photos", f"{LABELS[1]}/00.png"),
    (f"bench --engines {LONG}/bundle --data photos --json {LONG}.json", f"{LONG}.json"),
    (f"compare {LONG}.json {LONG}.json", LONG),
    (f"tune --engines {LONG}/bundle --data photos --trials 2 --logits {LONG}.npy", "balanced"),
    (f"info {LONG}/bundle", "balanced"),
    (f"doctor --engines {LONG}/bundle", "pip install"),
    ("train --data photos --val photos --backbone start.pt --epochs 1 --device cpu", "an oracle"),
    ("--help", "Options"),
    ("predict --engines none none.png", "none is not a bundle"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, a bundle in a folder of a long name, and photos in such folders."""
    root = tmp_path_factory.mktemp("made")
    model = randomised(LGViT(vit(num_blocks=2, exits=(ExitConfig(1, "lph", 3),), labels=LABELS)))
    save_checkpoint(model, root / "start.pt")
    export_bundle(model, root / LONG / "bundle")
    write_photos(root / "photos", LABELS, 16)
    return root


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
@pytest.mark.parametrize(("line", "shown"), LINES, ids=[line.split()[0] for line, _ in LINES])
def test_a_pipe_gets_everything_in_its_encoding(
    line: str, shown: str, encoding: str, made: Path, monkeypatch: MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(sys, "argv", ["lgvit-edge", *line.split()])
    with pytest.raises(SystemExit) as end:
        main()
    out.flush()
    err.flush()
    said = b"".join(s.buffer.getvalue() for s in (out, err)).decode(encoding)  # type: ignore[attr-defined]
    assert "internal error" not in said and "Traceback" not in said, said
    assert end.value.code in (None, 0) or "none.png" in line, said
    assert shown.encode(encoding, "backslashreplace").decode(encoding) in said
    assert "…" not in said and "\\u2026" not in said


@pytest.mark.parametrize("variable", [{}, {"FORCE_COLOR": "1"}, {"COLUMNS": "40"}])
def test_a_pipe_is_wide_whatever_is_said_of_terminals(variable: dict[str, str], made: Path) -> None:
    done = run("predict", "--engines", Path(LONG, "bundle"), "photos", cwd=made, **variable)
    assert done.returncode == 0, done.stderr
    assert all(f"{label}/00.png" in done.stdout for label in LABELS)


def test_a_terminal_is_as_wide_as_it_is(monkeypatch: MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "40")
    for stream, wide in ((Terminal(), False), (io.StringIO(), True)):
        monkeypatch.setattr(sys, "stdout", stream)
        assert (console.width > 1000) == wide


@pytest.mark.parametrize("command", ["info", "predict --engines"])
@pytest.mark.parametrize(
    ("variables", "opened"),
    [
        ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, False),
        ({"LC_ALL": "C", "PYTHONUTF8": "1"}, True),
        ({"PYTHONIOENCODING": "ascii:strict"}, True),
    ],
    ids=("C", "C-utf8", "ascii"),
)
def test_no_locale_ends_a_command(
    command: str, variables: dict[str, str], opened: bool, made: Path
) -> None:
    images = ["photos"] if command != "info" else []
    line = [*command.split(), f"{LONG}/bundle", *images]
    done = run(*line, cwd=made, **variables)
    if opened or command == "info":
        assert done.returncode == 0, done.stderr
    else:  # the library would not find the file
        assert "by names in UTF-8 alone: rename it, or set PYTHONUTF8=1" in done.stderr
