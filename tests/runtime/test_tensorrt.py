"""TensorRT without a GPU: stand-ins shaped by NVIDIA's bindings, version by version."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

fake_cuda = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "fakes/fake_cuda.py")))

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
        command = [
            "cc",
            "-shared",
            "-fPIC",
            f"-Wl,-soname,{library}",
            "-o",
            folder / library,
            source,
        ]
        subprocess.run(command, check=True)


def run_cases(driver: Path, rtx_bundles: Path, folder: Path, **variables: str) -> None:
    pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed")
    libraries = shutil.copy(driver, folder)
    fake_cuda.run_cases(
        "runtime/trt_cases.py",
        Path(libraries),
        "--noconftest",
        variables={"TRT_BUNDLES": str(rtx_bundles), **variables},
    )


@pytest.mark.trt
@pytest.mark.parametrize("version", VERSIONS)
def test_tensorrt_on_stand_ins(
    version: str, driver: Path, rtx_bundles: Path, tmp_path: Path
) -> None:
    wheels = list(WHEELS.glob(f"*-{version}-*.whl"))
    if not wheels:
        pytest.skip(f"NVIDIA's bindings {version} are not in {WHEELS}; run: make dev")
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(tmp_path)
    empty_libraries(tmp_path, version.split(".")[0])
    run_cases(
        driver,
        rtx_bundles,
        tmp_path,
        TRT_BINDINGS="tensorrt_bindings",
        TRT_MODULE="tensorrt",
        TRT_VERSION=version,
        TRT_FOLDER=str(tmp_path),
    )


@pytest.mark.trt
def test_tensorrt_rtx_on_stand_ins(driver: Path, rtx_bundles: Path, tmp_path: Path) -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    run_cases(
        driver,
        rtx_bundles,
        tmp_path,
        TRT_BINDINGS="tensorrt_rtx",
        TRT_MODULE="tensorrt_rtx",
        TRT_VERSION=rtx.__version__,
    )
