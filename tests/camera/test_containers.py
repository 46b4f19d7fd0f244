"""The container files fit the project: what they copy and install exists, and nobody is root."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "containers").glob("*.Dockerfile"))
# Of NVIDIA's image for a Jetson: what docs/tensorrt.md says of its JetPack.
PYTHONS = {"nvcr.io/nvidia/l4t-jetpack:r36": "3.10"}


def load_tool() -> ModuleType:
    """tools/container_steps.py, which reads the same files."""
    place = ROOT / "tools" / "container_steps.py"
    spec = importlib.util.spec_from_file_location("container_steps", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["container_steps"] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


tool = load_tool()


@pytest.fixture(params=FILES, ids=lambda file: file.name)
def file(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture
def steps(file: Path) -> list[Any]:
    instructions: list[Any] = tool.parse(file.read_text(encoding="utf-8"))
    return instructions


def last(steps: list[Any], name: str) -> Any:
    return [step for step in steps if step.name == name][-1]


def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as opened:
        table: dict[str, Any] = tomllib.load(opened)["project"]
    return table


def python_of(image: str) -> str:
    if found := re.match(r"python:(\d+\.\d+)", image):
        return found[1]
    return next(version for name, version in PYTHONS.items() if image.startswith(name))


def test_there_is_a_file_for_each_machine() -> None:
    assert [file.name for file in FILES] == ["jetpack6.Dockerfile", "x86.Dockerfile"]


def test_what_is_copied_exists_and_is_let_in(steps: list[Any]) -> None:
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    copied = [
        source
        for step in steps
        if step.name == "COPY" and step.option("from") is None
        for source in step.words[:-1]
    ]
    assert {"pyproject.toml", "lgvit_edge", "runtime"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists() and tool.shipped(source, ignore), source
    # All that setuptools maps into the package goes along, and what it names besides.
    with (ROOT / "pyproject.toml").open("rb") as opened:
        folders = tomllib.load(opened)["tool"]["setuptools"]["package-dir"].values()
    assert {*folders, project()["readme"], *project()["license-files"]} <= set(copied)


def test_stages_that_are_copied_from_exist(steps: list[Any]) -> None:
    names = tool.stages(steps)
    used = [source for step in steps if (source := step.option("from"))]
    assert used and set(used) <= set(names)


def test_python_fits_the_project_and_its_constraints(steps: list[Any]) -> None:
    fits = SpecifierSet(project()["requires-python"])
    versions = [python_of(step.value) for step in steps if step.name == "FROM"]
    assert len(versions) == 2 and all(fits.contains(version) for version in versions)
    if any("constraints.txt" in step.value for step in steps):
        # Each package is pinned once for it.
        lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
        here = {"python_version": versions[-1]}
        names = [pin.name for pin in pins if not pin.marker or pin.marker.evaluate(here)]
        assert len(names) == len(set(names)) and "numpy" in names


def test_the_extras_exist_and_bring_no_torch(steps: list[Any]) -> None:
    extras = {
        extra
        for step in steps
        if step.name == "RUN"
        for group in re.findall(r"\.whl\)\[([\w,]+)\]", step.value)
        for extra in group.split(",")
    }
    known = project()["optional-dependencies"]
    assert "camera" in extras and extras <= set(known)
    brought = {Requirement(text).name for extra in extras for text in known[extra]}
    assert not brought & {"torch", "onnx", "accelerate"}


def test_it_runs_without_rights_and_ends_as_asked(steps: list[Any]) -> None:
    user = last(steps, "USER").value
    (made,) = [step.value for step in steps if "useradd" in step.value]
    assert user != "root" and made.endswith(user) and "--groups video" in made
    assert steps.index(last(steps, "RUN")) < steps.index(last(steps, "USER"))
    assert last(steps, "STOPSIGNAL").value == "SIGTERM"
    # As lists: no shell stands between, which would keep the signal to itself.
    assert json.loads(last(steps, "ENTRYPOINT").value)[-1] == "camera"
    assert json.loads(last(steps, "CMD").value)[0] == "--config"
    assert last(steps, "VOLUME").value == last(steps, "WORKDIR").value


def test_its_health_is_asked_of_the_page(steps: list[Any]) -> None:
    command = json.loads(last(steps, "HEALTHCHECK").value.partition("CMD ")[2])
    port = last(steps, "EXPOSE").value
    assert f"'127.0.0.1', {port}," in command[-1] and "'/healthz'" in command[-1]
    compile(command[-1], "health", "exec")


def test_that_nobody_built_it_is_said(file: Path) -> None:
    comments = " ".join(
        line.lstrip("# ") for line in file.read_text().splitlines() if line.startswith("#")
    )
    assert "No container engine has built this file yet" in comments


def test_the_tool_reads_files_as_an_engine_does() -> None:
    text = """
# a comment
ARG TAG=r1
FROM image:${TAG} AS first
RUN one \\
    # in between
    && two --x "a b"

COPY --from=first --chown=1 a b /c/
ENTRYPOINT ["/x/bin/y", "z"]
"""
    steps = tool.parse(text)
    assert [(step.name, step.line) for step in steps] == [
        ("ARG", 3),
        ("FROM", 4),
        ("RUN", 5),
        ("COPY", 9),
        ("ENTRYPOINT", 10),
    ]
    assert steps[1].value == "image:r1 AS first"
    assert steps[2].value == 'one && two --x "a b"'
    assert steps[3].words == ["a", "b", "/c/"] and steps[3].option("from") == "first"
    assert steps[4].words == ["/x/bin/y", "z"]


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("README.md", True),
        ("lgvit_edge/camera/shot.py", True),
        ("lgvit_edge/camera/__pycache__", False),
        ("benchmarks/measure.py", True),
        ("benchmarks/results", False),
        ("tests", False),
        (".venv", False),
        ("out", False),
    ],
)
def test_what_a_build_gets(path: str, kept: bool) -> None:
    assert tool.shipped(path, (ROOT / ".dockerignore").read_text(encoding="utf-8")) == kept


def test_a_step_that_fails_is_told(tmp_path: Path) -> None:
    text = 'FROM python:{}.{}-slim\nWORKDIR /w\nRUN true && false\nENTRYPOINT ["/w/bin/x"]\n'
    steps = tool.parse(text.format(*sys.version_info))
    with pytest.raises(tool.Failed, match="false: status 1"):
        list(tool.run(steps, tmp_path))
    steps = tool.parse(text.replace("{}.{}", "2.7"))
    with pytest.raises(tool.Failed, match="run this with Python 2.7"):
        list(tool.run(steps, tmp_path / "b"))
    steps = tool.parse(text.format(*sys.version_info).replace("RUN true", "COPY tests t\nRUN x"))
    with pytest.raises(tool.Failed, match="COPY tests: it is not there, or .dockerignore"):
        list(tool.run(steps, tmp_path / "c"))
