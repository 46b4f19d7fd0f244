"""What README and docs say holds: code runs; commands, options, links and named files exist."""

from __future__ import annotations

import functools
import importlib
import io
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import typer
from PIL import Image
from signed import key_pair, signed_copy
from small import point
from typer.core import TyperCommand
from typer.main import get_command

from lgvit_edge.benchmarks.experiments.figure import draw
from lgvit_edge.bundle.directory import add_to_manifest
from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.cli.app import app
from lgvit_edge.errors import LGViTEdgeError
from lgvit_edge.model import LGViT, save_checkpoint

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "results" / "README.md",
]
WITH_CODE = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]
EXPERIMENTS = "lgvit_edge.benchmarks.experiments"
# Options of other programs that the pages name.
FOREIGN = {"--init", "--multi_gpu", "--system-site-packages"}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def desk(
    bundle: Path, exported_model: LGViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, object]:
    """A folder with all files that the pages name; returns what their code takes as given."""
    out = Path(shutil.copytree(bundle, tmp_path / "out"))
    manifest = Manifest.loads((out / "manifest.json").read_text(encoding="utf-8"))
    names = ("accurate", "balanced", "fast")
    add_to_manifest(
        out, manifest.identity, dict.fromkeys(names, point(shares=(1.0, 0.0, 0.0, 0.0)))
    )
    save_checkpoint(exported_model, tmp_path / "model.pt")
    pair = key_pair(tmp_path / "fleet.key")
    signed_copy(out, tmp_path / "new", pair)
    shutil.rmtree(out)
    signed_copy(tmp_path / "new", out, pair)
    frame = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    (tmp_path / "photos").mkdir()
    for photo in ("photo.jpg", "photos/0.jpg"):
        Image.fromarray(frame).save(tmp_path / photo)
    monkeypatch.chdir(tmp_path)
    camera = SimpleNamespace(read=lambda: (True, frame))  # this machine has none
    monkeypatch.setattr("cv2.VideoCapture", lambda number: camera)
    given: dict[str, object] = {"frame": frame, "log": io.StringIO(), "json": json}
    return given | dict.fromkeys(("frames", "gate", "yard"), [frame] * 3)


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_the_code_runs(page: Path, desk: dict[str, object]) -> None:
    for code in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        program = compile(code, name_of(page), "exec")
        if "TensorRT" in code:  # the bundle has no engines, so all but the last line can run
            with pytest.raises(LGViTEdgeError, match="engine|TensorRT"):
                exec(program, desk)
        else:
            exec(program, desk)
    if "session" in desk:
        desk["session"].close()  # type: ignore[attr-defined]


@functools.cache
def our_commands() -> dict[str, TyperCommand]:
    """By name; those of a group as "bundle sign"."""
    found = {}
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        found[name] = command
        for inner, own in getattr(command, "commands", {}).items():
            found[f"{name} {inner}"] = own
    return found


@functools.cache
def options_of(command: str) -> frozenset[str]:
    """Of ``lgvit-edge COMMAND``, or of an experiment by its module's name."""
    commands = our_commands()
    if command in commands:
        found: TyperCommand = commands[command]
    else:
        one = typer.Typer()
        one.command()(importlib.import_module(command).main)
        found = get_command(one)  # type: ignore[assignment]
    options = {option for p in found.params for option in [*p.opts, *p.secondary_opts]}
    return frozenset(options | {"--help", "--debug"})


def commands_in(text: str) -> list[tuple[str, str]]:
    """Command, or module of an experiment, and the rest of its line; in code alone."""
    text = re.sub(r"```.*?```", "", text.replace("\\\n", " "), flags=re.S)
    lines = re.findall(r"^ {4}(.*)$", text, re.M)
    lines += [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", text)]
    code = "\n".join(lines)
    groups = "|".join({name.split()[0] for name in our_commands() if " " in name})
    shown = re.findall(rf"lgvit-edge +((?:{groups}) [a-z]+|[a-z][a-z-]*)(.*)", code)
    return shown + re.findall(rf"({EXPERIMENTS}\.[a-z_]+)(.*)", code)


def wrong_commands(text: str) -> list[str]:
    """Commands and options that do not exist; options named alone must exist somewhere."""
    ours = our_commands()
    anywhere = FOREIGN.union(*map(options_of, ours))
    wrong = []
    for command, rest in commands_in(text):
        if command not in ours and not command.startswith(EXPERIMENTS):
            wrong.append(f"lgvit-edge {command}")
            continue
        try:
            known = options_of(command)
        except ModuleNotFoundError:
            wrong.append(command)
            continue
        anywhere |= known
        options = re.findall(r"(?<!\S)\[?(--[a-z][a-z-]*)", rest)
        wrong += [f"{command} {option}" for option in options if option not in known]
    for option in re.findall(r"`(--[a-z][a-z0-9_-]*)", text):
        if option not in anywhere:
            wrong.append(option)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_commands_and_options_exist(page: Path) -> None:
    assert wrong_commands(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("    lgvit-edge fly out/", "lgvit-edge fly"),
        ("    lgvit-edge info --wings", "info --wings"),
        ("    lgvit-edge bundle fly out/", "lgvit-edge bundle fly"),
        ("    lgvit-edge bundle sign --wings", "bundle sign --wings"),
        ("    lgvit-edge train --data DIR \\\n        --engines out/", "train --engines"),
        ("`lgvit-edge`\n`lgvit-edge export [--wings 2]` and", "export --wings"),
        ("the option `--wings 2`", "--wings"),
        (f"    python -m {EXPERIMENTS}.flight --out x", f"{EXPERIMENTS}.flight"),
        (f"`python -m {EXPERIMENTS}.soak --wings 2`", f"{EXPERIMENTS}.soak --wings"),
    ],
)
def test_a_wrong_command_is_noticed(text: str, wrong: str) -> None:
    assert wrong_commands(text) == [wrong]


def test_the_readme_shows_every_command() -> None:
    shown = {name for name, _ in commands_in((ROOT / "README.md").read_text(encoding="utf-8"))}
    ours = our_commands()
    assert shown >= ours.keys() - {name.split()[0] for name in ours if " " in name}


def test_the_named_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert set(re.findall(r"(?:^    |`)make ([a-z]+)", text, re.M)) <= targets, page


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Links to files or headings, and paths in backticks, that do not exist."""
    text = page.read_text(encoding="utf-8")
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    rooms = "lgvit_edge|export|runtime|benchmarks|tests|docs|tools"
    for path in re.findall(rf"`((?:{rooms})/[\w./-]*)`", text):
        if not (ROOT / path).exists() and not path.startswith("build/"):
            broken.append(path)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_nothing_is_left_to_fill_in(page: Path) -> None:
    """A line of capitals alone stands where a figure was to come."""
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"^@?[A-Z][A-Z_]{3,}@?$", text, re.M) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_named_files_exist(page: Path) -> None:
    assert broken_links(page) == []


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("see [this](missing.md)", ["missing.md"]),
        ("# Here it is\n[down](#here-it-is), [away](#elsewhere)", ["#elsewhere"]),
        ("`benchmarks/missing.py` draws it", ["benchmarks/missing.py"]),
        ("[there](https://example.org/missing.md)", []),
    ],
)
def test_a_broken_link_is_noticed(text: str, broken: list[str], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    assert broken_links(page) == broken


def test_the_readme_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in sorted((ROOT / "docs").glob("*.md")):
        assert f"({name_of(page)})" in text


def test_the_readmes_picture_is_what_was_measured() -> None:
    record = json.loads((ROOT / "benchmarks/results/rivals-vit-base.json").read_text("utf-8"))
    assert (ROOT / "docs" / "speed.svg").read_text("utf-8") == draw(record, "ViT-B/16")
    by_name = {row["name"]: row for row in record["rows"]}
    assert round(by_name["chain, OpenVINO"]["wall_clock"], 2) == 1.83
