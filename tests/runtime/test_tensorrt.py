"""TensorRT without a GPU: the newest version, with all that is alike in every version."""

from __future__ import annotations

from pathlib import Path

import pytest
from trt_versions import VERSIONS, run_version

pytestmark = [pytest.mark.slow, pytest.mark.trt]


def test_newest_version_on_stand_ins(driver: Path, bundles: Path, tmp_path: Path) -> None:
    run_version(VERSIONS[-1], driver, bundles, tmp_path, "runtime/trt_cases.py")
