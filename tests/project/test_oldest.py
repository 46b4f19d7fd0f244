"""The oldest versions that pyproject.toml allows are those that `make test-oldest` installs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
# They need the libraries of a GPU's machine, or overwrite the same package for CUDA 13.
NOT_INSTALLED = {"onnxruntime-gpu", "pycuda", "tensorrt", "tensorrt-cu12", "tensorrt-rtx-cu12"}


def declared() -> list[Requirement]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        tables: dict[str, Any] = tomllib.load(file)
    project = tables["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(text) for group in groups for text in group]


def lowest(requirement: Requirement) -> Version:
    (bound,) = (part.version for part in requirement.specifier if part.operator == ">=")
    return Version(bound)


def installed() -> dict[str, Version]:
    """What constraints-oldest.txt pins, by name."""
    pins = {}
    for line in (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            (exact,) = pin.specifier
            assert exact.operator == "==", line
            pins[canonicalize_name(pin.name)] = Version(exact.version)
    return pins


@pytest.mark.parametrize("requirement", declared(), ids=str)
def test_the_lowest_version_declared_is_the_one_tested(requirement: Requirement) -> None:
    name = canonicalize_name(requirement.name)
    if name not in NOT_INSTALLED:
        assert installed().get(name) == lowest(requirement)


def test_nothing_else_is_pinned() -> None:
    names = {canonicalize_name(requirement.name) for requirement in declared()}
    assert set(installed()) == names - NOT_INSTALLED
