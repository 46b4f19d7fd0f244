"""Starts the cases of TensorRT on stand-ins shaped by NVIDIA's bindings, version by version."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import fake_cuda
import pytest

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


def wheel_of(version: str) -> Path | None:
    return next(iter(WHEELS.glob(f"*-{version}-*.whl")), None)


def empty_libraries(folder: Path, major: str) -> None:
    """What the bindings link to: every function they name, none of which does anything."""
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _SYMBOLS))
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser", "nvparsers"):
        library = f"lib{name}.so.{major}"
        options = ["-shared", "-fPIC", f"-Wl,-soname,{library}"]
        subprocess.run(["cc", *options, "-o", folder / library, source], check=True)


def run_cases(
    driver: Path,
    bundles: Path,
    folder: Path,
    *binding: str,
    file: str = "runtime/trt_cases.py",
    **more: str,
) -> None:
    """``binding`` is its package, the module it stands for, and its version.

    What is alike in every version is run on the newest alone, and without it on TensorRT-RTX.
    """
    pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed")
    _, module, version = binding
    has_newest = wheel_of(VERSIONS[-1]) is not None
    whole = version == VERSIONS[-1] if has_newest else module == "tensorrt_rtx"
    names = ("TRT_WHOLE", "TRT_BUNDLES", "TRT_BINDINGS", "TRT_MODULE", "TRT_VERSION")
    values = ("1" if whole else "", str(bundles), *binding)
    variables = dict(zip(names, values, strict=True)) | more
    library = Path(shutil.copy(driver, folder))
    fake_cuda.run_cases(file, library, **variables)


def run_version(version: str, driver: Path, bundles: Path, tmp_path: Path, file: str) -> None:
    wheel = wheel_of(version)
    if wheel is None:
        pytest.skip(f"NVIDIA's bindings {version} are not in {WHEELS}; run: make dev")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path)
    empty_libraries(tmp_path, version.split(".")[0])
    binding = ("tensorrt_bindings", "tensorrt", version)
    run_cases(driver, bundles, tmp_path, *binding, file=file, TRT_FOLDER=str(tmp_path))
