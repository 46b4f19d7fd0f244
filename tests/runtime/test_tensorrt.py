"""TensorRT without a GPU: stand-ins shaped by NVIDIA's bindings, version by version."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import fake_cuda
import pytest

pytestmark = pytest.mark.slow
# `make dev` puts NVIDIA's bindings here, without the libraries they bind.
WHEELS = Path(sys.prefix) / "nvidia-bindings"
VERSIONS = ("8.6.1", "10.3.0", "10.16.1.11", "11.4.0.106")
_SYMBOLS = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
    *("createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL"),
    *("getBuilderPluginRegistry", "getNvOnnxParserVersion", "getPluginRegistry"),
    *("initLibNvInferPlugins", "_ZN11nvuffparser15createUffParserEv"),
    *(
        "_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi",
        "_ZN14nvcaffeparser117createCaffeParserEv",
    ),
    "_ZN14nvcaffeparser123shutdownProtobufLibraryEv",
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(fake_cuda.build(tmp_path_factory.mktemp("driver")))


def empty_libraries(folder: Path, major: str) -> None:
    """What the bindings link to: every function they name, none of which does anything."""
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _SYMBOLS))
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser", "nvparsers"):
        library = f"lib{name}.so.{major}"
        options = ["-shared", "-fPIC", f"-Wl,-soname,{library}"]
        subprocess.run(["cc", *options, "-o", folder / library, source], check=True)


@pytest.fixture(scope="module")
def bundles(rtx_bundle: Callable[[str], Path]) -> Path:
    """The folder with all of them: each name's ``out``."""
    names = ("fp32", "fp16", "fixed", "swin", "two")
    return {rtx_bundle(name).parents[1] for name in names}.pop()


def run_cases(
    driver: Path,
    bundles: Path,
    folder: Path,
    *binding: str,
    file: str = "runtime/trt_cases.py",
    **more: str,
) -> None:
    """``binding`` is its package, the module it stands for, and its version."""
    pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed")
    names = ("TRT_NEWEST", "TRT_BUNDLES", "TRT_BINDINGS", "TRT_MODULE", "TRT_VERSION")
    variables = dict(zip(names, (VERSIONS[-1], str(bundles), *binding), strict=True)) | more
    library = Path(shutil.copy(driver, folder))
    fake_cuda.run_cases(file, library, **variables)


@pytest.mark.trt
@pytest.mark.parametrize("version", VERSIONS)
def test_tensorrt_on_stand_ins(version: str, driver: Path, bundles: Path, tmp_path: Path) -> None:
    run_version(version, driver, bundles, tmp_path, "runtime/trt_cases.py")


@pytest.mark.trt
def test_images_on_the_gpu_on_stand_ins(driver: Path, bundles: Path, tmp_path: Path) -> None:
    """They never reach TensorRT's own calls, which differ by version."""
    run_version("10.3.0", driver, bundles, tmp_path, "runtime/gpu_image_cases.py")


def run_version(version: str, driver: Path, bundles: Path, tmp_path: Path, file: str) -> None:
    wheels = list(WHEELS.glob(f"*-{version}-*.whl"))
    if not wheels:
        pytest.skip(f"NVIDIA's bindings {version} are not in {WHEELS}; run: make dev")
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(tmp_path)
    empty_libraries(tmp_path, version.split(".")[0])
    binding = ("tensorrt_bindings", "tensorrt", version)
    run_cases(driver, bundles, tmp_path, *binding, file=file, TRT_FOLDER=str(tmp_path))


@pytest.mark.trt
def test_tensorrt_rtx_on_stand_ins(driver: Path, bundles: Path, tmp_path: Path) -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    binding = ("tensorrt_rtx", "tensorrt_rtx", rtx.__version__)
    run_cases(driver, bundles, tmp_path, *binding)
