"""What a record says of the machine it was made on."""

from __future__ import annotations

from importlib.metadata import version

from lgvit_edge.machine.environment import installed_packages, version_of


def test_packages_are_all_that_lgvit_edge_makes_use_of() -> None:
    packages = installed_packages()
    assert list(packages)[0] == "lgvit-edge"
    for name in ("numpy", "Pillow", "onnxruntime", "torch"):
        assert packages[name] == version(name)
    assert ("openvino" in packages) == (version_of("openvino") is not None)
    assert not {"pytest", "ruff", "mypy"} & set(packages)  # what only contributors have


def test_a_package_that_is_not_there_has_no_version() -> None:
    assert version_of("no-such-package-anywhere") is None
