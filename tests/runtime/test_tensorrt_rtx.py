"""TensorRT-RTX without a GPU, and images on the GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from trt_versions import run_cases, run_version

pytestmark = [pytest.mark.slow, pytest.mark.trt]


def test_tensorrt_rtx_on_stand_ins(driver: Path, bundles: Path, tmp_path: Path) -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    binding = ("tensorrt_rtx", "tensorrt_rtx", rtx.__version__)
    run_cases(driver, bundles, tmp_path, *binding)


def test_images_on_the_gpu_on_stand_ins(driver: Path, bundles: Path, tmp_path: Path) -> None:
    """They never reach TensorRT's own calls, which differ by version."""
    run_version("10.3.0", driver, bundles, tmp_path, "runtime/gpu_image_cases.py")
