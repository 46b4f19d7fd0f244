"""What is on the disk is what ships: the package list, a real wheel, and the names it installs."""

from __future__ import annotations

import shutil
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from processes import run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
MAPPED = {"export", "runtime", "benchmarks"}
NOT_SHIPPED = {"lgvit_edge.benchmarks.experiments"}


def setuptools_table() -> Mapping[str, object]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["tool"]["setuptools"]


def trees(root: Path) -> Iterator[tuple[str, Path]]:
    """Each top-level folder with the name it imports under."""
    yield "lgvit_edge", root / "lgvit_edge"
    for folder in sorted(MAPPED):
        yield f"lgvit_edge.{folder}", root / folder


def packages_on_disk(root: Path) -> set[str]:
    """The dotted name of every folder with an ``__init__.py``."""
    found = set()
    for name, folder in trees(root):
        for init in folder.rglob("__init__.py"):
            found.add(".".join([name, *init.parent.relative_to(folder).parts]))
    return found


def modules_on_disk(root: Path, kinds: tuple[str, ...] = (".py",)) -> set[str]:
    """Every file with one of these endings, as the path it has once installed."""
    return {
        "/".join([*name.split("."), *path.relative_to(folder).parts])
        for name, folder in trees(root)
        for path in folder.rglob("*.*")
        if path.suffix in kinds and "results" not in path.parts
    }


def copy_sources(target: Path) -> Path:
    """A clean copy of all that a build reads, without products of earlier builds."""
    ignore = shutil.ignore_patterns("__pycache__", "results")
    for _, folder in trees(ROOT):
        shutil.copytree(folder, target / folder.name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target / name)
    return target


def test_every_package_on_disk_is_listed() -> None:
    listed = setuptools_table()["packages"]
    assert isinstance(listed, list)
    assert len(listed) == len(set(listed))
    assert set(listed) == packages_on_disk(ROOT) - NOT_SHIPPED


def test_the_mapping_names_every_top_level_folder() -> None:
    expected = {name: folder.name for name, folder in trees(ROOT)}
    assert setuptools_table()["package-dir"] == expected


@pytest.mark.parametrize("folder", ["lgvit_edge/planted", "export/planted", "runtime/a/planted"])
def test_an_unlisted_package_is_noticed(tmp_path: Path, folder: str) -> None:
    copy_sources(tmp_path)
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "__init__.py").touch()
    name = folder.replace("/", ".")
    planted = name if name.startswith("lgvit_edge.") else f"lgvit_edge.{name}"
    assert packages_on_disk(tmp_path) - packages_on_disk(ROOT) == {planted}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    """The root of a wheel built from a clean copy."""
    # In place, setuptools would also pack what an earlier build left in build/lib.
    sources = copy_sources(tmp_path_factory.mktemp("sources"))
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(target), str(sources)]
    result = run(*command, cwd=target)
    assert result.returncode == 0, result.stdout + result.stderr
    (built,) = target.glob("lgvit_edge-*.whl")
    return zipfile.Path(built)


def test_the_wheel_ships_every_module(wheel: zipfile.Path) -> None:
    names = set(wheel.root.namelist())
    # Of kernels the text, not its source; the files of the live page; Triton's model.py as .txt.
    kinds = (".py", ".json", ".j2", ".ptx", ".typed", ".html", ".css", ".js", ".svg", ".txt")
    shipped = {n for n in modules_on_disk(ROOT, kinds) if "/experiments/" not in n}
    assert {n for n in names if ".dist-info/" not in n and not n.endswith("/")} == shipped


def test_the_wheel_installs_one_top_level_name(wheel: zipfile.Path) -> None:
    tops = {entry.name for entry in wheel.iterdir() if not entry.name.endswith(".dist-info")}
    assert tops == {"lgvit_edge"}


def test_the_staged_package_keeps_the_import_rules(wheel: zipfile.Path, tmp_path: Path) -> None:
    wheel.root.extractall(tmp_path)
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    command += ["--config", str(ROOT / "pyproject.toml")]
    result = run(*command, cwd=tmp_path, path=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", sorted(MAPPED))
def test_no_bare_name_imports_once_installed(tmp_path: Path, name: str) -> None:
    probe = f"import lgvit_edge.{name}, importlib.util as u; print(u.find_spec({name!r}))"
    result = run(sys.executable, "-c", probe, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    # Others leave such folders behind: pyarrow 17 has a "benchmarks".
    assert result.stdout.strip() == "None" or str(ROOT / name) not in result.stdout
