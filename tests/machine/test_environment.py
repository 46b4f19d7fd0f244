"""What a record says of the machine."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import pytest

from lgvit_edge.machine import environment as module


def test_every_backend_is_recorded_that_is_installed() -> None:
    recorded = module.environment()["packages"]
    for name in ("lgvit-edge", "numpy", "onnxruntime", "openvino", "torch", "onnx"):
        try:
            number = version(name)
        except PackageNotFoundError:
            assert name not in recorded
        else:
            assert recorded[name] == number
    assert "pytest" not in recorded and "ruff" not in recorded


def test_what_is_not_installed_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(module, "requires", nothing)
    assert module.packages() == {}


def test_a_package_that_is_not_there_has_no_version() -> None:
    assert module.version_of("no-such-package-anywhere") is None
