"""What the tests on stand-ins for CUDA and TensorRT share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import fake_cuda
import pytest


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(fake_cuda.build(tmp_path_factory.mktemp("driver")))


@pytest.fixture(scope="session")
def bundles(rtx_bundle: Callable[[str], Path]) -> Path:
    """The folder with all of them: each name's ``out``."""
    names = ["fp32", "fp16", "fixed", "swin", "two"]
    if os.environ.get("PYTEST_XDIST_WORKER") == "gw1":
        names.reverse()  # two workers that ask at once make them together
    return {rtx_bundle(name).parents[1] for name in names}.pop()
