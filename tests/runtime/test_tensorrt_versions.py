"""TensorRT without a GPU: older versions, whose calls differ."""

from __future__ import annotations

from pathlib import Path

import pytest
from trt_versions import VERSIONS, run_version

pytestmark = [pytest.mark.slow, pytest.mark.trt]


@pytest.mark.parametrize("version", VERSIONS[:-1])
def test_older_versions_on_stand_ins(
    version: str, driver: Path, bundles: Path, tmp_path: Path
) -> None:
    run_version(version, driver, bundles, tmp_path, "runtime/trt_cases.py")
