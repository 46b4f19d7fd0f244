"""The three guards of the package mapping, each shown to pass here and to fire on a planted fault.

1. import-linter, through the folder of links: the contracts in ``pyproject.toml``;
2. a subprocess without torch that imports every deployed module;
3. ruff's ban on the bare names of the mapped folders.
"""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "pyproject.toml"

# What the workstation has and the device has not.
WORKSTATION_ONLY = {"model", "training", "export", "probing"}
# Of export/, what compiles engines, which devices do themselves.
BUILDER = {
    "lgvit_edge.export",
    "lgvit_edge.export.tensorrt",
    *(f"lgvit_edge.export.tensorrt.{name}" for name in ("build", "builder")),
}
# Commands for both: they import torch, if at all, inside the commands that need it.
COMMANDS = {"cli", "__main__"}
# What the extras for a workstation bring, and what must never come along with them.
ABSENT_ON_DEVICES = [
    *("torch", "torchvision", "onnx", "onnxscript", "onnx_ir", "safetensors"),
    *("sklearn", "scipy", "transformers", "timm", "pandas"),
    *("optuna", "matplotlib", "jinja2"),
]
# Scripts for a workstation: they train, take graphs apart, or run PyTorch as a rival.
EXPERIMENTS = "lgvit_edge.benchmarks.experiments."


@pytest.fixture(scope="module")
def links(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of links, made by the rule that contributors and CI use."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    target = tmp_path_factory.mktemp("links")
    result = run("make", "--silent", "links", f"LINKS={target}", cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return target


@pytest.fixture
def staged(links: Path, tmp_path: Path) -> Path:
    """A copy of the whole package, to plant faults in."""
    ignore = shutil.ignore_patterns("__pycache__", "results")
    shutil.copytree(links / "lgvit_edge", tmp_path / "lgvit_edge", ignore=ignore)
    return tmp_path


def plant(file: Path, line: str) -> None:
    """Append a line, at a place where it runs on import."""
    with file.open("a", encoding="utf-8") as source:
        source.write(f"\n{line}\n")


def contracts() -> dict[str, dict[str, list[str]]]:
    with CONFIG.open("rb") as file:
        listed = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    return {contract["id"]: contract for contract in listed}


# Guard 1: import-linter


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).with_name("lint-imports"))
    return run(program, "--no-cache", "--config", str(CONFIG), cwd=folder, path=folder)


def test_the_folder_of_links_shows_every_file(links: Path) -> None:
    shown = {file.name for file in (links / "lgvit_edge").iterdir()}
    on_disk = {file.name for file in (ROOT / "lgvit_edge").iterdir()} - {"__pycache__"}
    assert shown == on_disk | {"export", "runtime", "benchmarks"}


def test_import_rules_hold(links: Path) -> None:
    result = lint_imports(links)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("file", "line", "culprit"),
    [
        ("runtime/__init__.py", "import lgvit_edge.model", "lgvit_edge.model"),
        ("runtime/planted.py", "import torch", "torch"),
        ("benchmarks/__init__.py", "import lgvit_edge.export", "lgvit_edge.export"),
        ("policies/rules.py", "def f():\n    from lgvit_edge import runtime", "lgvit_edge.runtime"),
        ("errors.py", "import lgvit_edge.architecture", "lgvit_edge.architecture"),
        ("export/tensorrt/build.py", "from lgvit_edge.export import graph", "torch"),
        ("cli/bench.py", "import lgvit_edge.benchmarks.experiments", "experiments"),
        ("unplaced.py", "", "unplaced"),
    ],
)
def test_import_rules_fire(staged: Path, file: str, line: str, culprit: str) -> None:
    plant(staged / "lgvit_edge" / file, line)
    result = lint_imports(staged)
    assert result.returncode == 1, result.stdout + result.stderr
    assert culprit in result.stdout


def test_every_deployed_room_is_under_the_contract() -> None:
    rooms = {entry.name for entry in (ROOT / "lgvit_edge").iterdir() if entry.is_dir()}
    files = {file.stem for file in (ROOT / "lgvit_edge").glob("*.py")} - {"__init__"}
    rooms = (rooms | files | {"runtime", "benchmarks"}) - {"__pycache__"}
    deployed = rooms - WORKSTATION_ONLY - COMMANDS
    assert set(contracts()["deployed"]["source_modules"]) == {f"lgvit_edge.{r}" for r in deployed}


# Guard 2: a subprocess without torch


def deployed_modules(package: Path) -> list[str]:
    """Every module that a device may import, found on the disk."""
    names = []
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        name = ".".join(["lgvit_edge", *(part for part in parts if part != "__init__")])
        if parts[0] in WORKSTATION_ONLY and name not in BUILDER:
            continue
        if not name.startswith(EXPERIMENTS):
            names.append(name)
    return names


def import_without(
    absent: list[str], modules: list[str], stage: Path
) -> subprocess.CompletedProcess[str]:
    """Import ``modules`` from ``stage`` where the packages ``absent`` cannot be imported."""
    script = f"""
import importlib, sys
for name in {absent!r}:
    sys.modules[name] = None
for name in {modules!r}:
    module = importlib.import_module(name)
    assert module.__file__.startswith({str(stage)!r}), module.__file__
"""
    return run(sys.executable, "-c", script, cwd=stage, path=stage)


def test_deployed_modules_import_without_torch(staged: Path) -> None:
    modules = deployed_modules(staged / "lgvit_edge")
    expected = {f"lgvit_edge.{name}" for name in ("cli", "runtime", "benchmarks", "tuning")}
    assert expected <= set(modules)
    result = import_without(ABSENT_ON_DEVICES, modules, staged)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "file",
    ["__init__.py", "runtime/__init__.py", "runtime/planted.py", "export/__init__.py"],
)
def test_torch_in_a_deployed_module_is_noticed(staged: Path, file: str) -> None:
    plant(staged / "lgvit_edge" / file, "import torch")
    modules = deployed_modules(staged / "lgvit_edge")
    result = import_without(ABSENT_ON_DEVICES, modules, staged)
    assert result.returncode == 1
    assert "import of torch halted" in result.stderr


# Guard 3: ruff


def ban(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "TID251"]
    return run(*command, *arguments, cwd=ROOT, stdin=stdin)


def test_no_file_imports_a_bare_name() -> None:
    result = ban(".")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    "line",
    [
        *("import export", "import runtime.session"),
        *("from runtime import x", "from benchmarks.records import Record"),
    ],
)
@pytest.mark.parametrize("place", ["tests/planted.py", "lgvit_edge/planted.py", "export/p.py"])
def test_a_bare_name_is_noticed(place: str, line: str) -> None:
    result = ban("--stdin-filename", place, "-", stdin=f"{line}\n")
    assert result.returncode == 1
    assert "TID251" in result.stdout
    assert "makes a second copy of every class" in result.stdout


def test_modules_that_import_each_other_are_found() -> None:
    """As ``make check`` asks."""
    circles_of = runpy.run_path(str(ROOT / "tools" / "import_map.py"))["circles_of"]
    imports = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}
    assert circles_of(imports) == [{"a", "b", "c"}]
