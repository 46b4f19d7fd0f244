"""Files of a bundle that a stranger changed: refused before they are read, run or waited for."""

from __future__ import annotations

import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import list_again

from lgvit_edge.bundle.directory import open_bundle, writing
from lgvit_edge.errors import BackendError, BundleError, ExportError, LGViTEdgeError
from lgvit_edge.runtime import Session
from lgvit_edge.runtime.backends.base import ChainOptions
from lgvit_edge.runtime.backends.registry import chain_opener
from lgvit_edge.runtime.loaded import check_parity

WEIGHTS = "segments/weights.bin"


def redirect(root: Path, graph: str, location: str) -> None:
    model = onnx.load(root / graph, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (root / graph).write_bytes(model.SerializeToString())
    list_again(root)


@pytest.mark.parametrize("graph", ["segments/segment_1.onnx", "baseline.onnx"])
@pytest.mark.parametrize(
    "location",
    ["altered.bin", "../altered.bin", "./weights.bin", "../segments/weights.bin", "/ROOT/w.bin"],
)
def test_weights_that_the_manifest_does_not_list(
    bundle_copy: Path, graph: str, location: str
) -> None:
    for folder in (bundle_copy, bundle_copy / "segments", bundle_copy.parent):
        shutil.copy(bundle_copy / WEIGHTS, folder / "altered.bin")
    redirect(bundle_copy, graph, location.replace("/ROOT", str(bundle_copy)))
    with pytest.raises(BundleError, match=r"is taken from '.*', which the manifest does not"):
        Session.open(bundle_copy)


def test_links_inside_the_bundle_are_refused(bundle_copy: Path) -> None:
    """ONNX Runtime looks for weights beside the file that a link leads to."""
    other = bundle_copy / "other"
    other.mkdir()
    (bundle_copy / "baseline.onnx").rename(other / "baseline.onnx")
    (bundle_copy / "baseline.onnx").symlink_to(other / "baseline.onnx")
    with pytest.raises(BundleError, match=r"baseline.onnx is a link; copy .* cp -rL"):
        Session.open(bundle_copy)


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_terabyte(path: Path) -> None:
    os.truncate(path, 1 << 40)


def a_circle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


FILES = ("manifest.json", WEIGHTS, "segments/segment_0.onnx", "baseline.onnx", "parity.npz")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("change", [a_pipe, a_folder, a_terabyte, a_circle])
def test_what_is_no_plain_file_of_its_size(
    bundle_copy: Path, file: str, change: Callable[[Path], None]
) -> None:
    change(bundle_copy / file)
    began = time.monotonic()
    with pytest.raises(BundleError):
        Session.open(bundle_copy)
    assert time.monotonic() - began < 5


def test_a_size_beyond_all_models_is_refused(bundle_copy: Path) -> None:
    """Else a terabyte of nothing, listed with its size, would be hashed for an hour."""
    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    manifest["weights"][0]["bytes"] = 1 << 40
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    a_terabyte(bundle_copy / WEIGHTS)
    with pytest.raises(BundleError, match="bytes of 'segments/weights.bin' must be 0"):
        Session.open(bundle_copy)


def test_an_export_does_not_wait_for_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out" / "manifest.json")
    with pytest.raises(ExportError, match="is not a bundle"), writing(tmp_path / "out"):
        pass


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as file:
            for _ in range(64):
                file.write(b"\0" * (1 << 20))


def with_arrays(**arrays: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with np.load(path) as samples:
            kept = dict(samples)
        new = {name: change(kept[name]) for name, change in arrays.items()}
        np.savez(path, **{k: v for k, v in (kept | new).items() if v is not None})

    return change


SAMPLES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "bomb": (bomb, r"expected at most \d+ bytes inside, found 67108864"),
    "no archive": (lambda path: path.write_bytes(b"no archive"), "BadZipFile"),
    "nothing": (lambda path: path.write_bytes(b""), "BadZipFile"),
    "no logits": (with_arrays(logits=lambda a: None), "KeyError"),
    "pickles": (with_arrays(logits=lambda a: np.array([{}, {}])), "allow_pickle=False"),
    "no images": (
        with_arrays(images_1=lambda a: a[:0], logits=lambda a: a[:0]),
        "expected images_1",
    ),
    "other images": (with_arrays(images_1=lambda a: a[:, :-1]), "expected images_1 of uint8"),
    "fewer": (with_arrays(logits=lambda a: a[:-1]), "as many logits as images"),
    "float64": (with_arrays(logits=lambda a: a.astype("f8")), "expected logits of float32"),
    "NaN": (with_arrays(logits=lambda a: a * np.nan), "expected finite logits"),
}


@pytest.fixture(scope="module")
def chain(bundle: Path) -> Any:
    opened = chain_opener(open_bundle(bundle), "onnxruntime", ChainOptions())
    running = opened([f"segment_{i}" for i in range(4)])
    yield running
    running.close()


@pytest.mark.parametrize("fault", SAMPLES)
def test_samples_that_are_none(bundle_copy: Path, chain: Any, fault: str) -> None:
    change, message = SAMPLES[fault]
    change(bundle_copy / "parity.npz")
    list_again(bundle_copy)
    with pytest.raises(BundleError, match=rf"parity\.npz holds no samples.*{message}"):
        check_parity(open_bundle(bundle_copy), chain, None)


@pytest.mark.parametrize("error", [OSError, RuntimeError, MemoryError, KeyError, ValueError])
def test_what_a_backend_did_not_foresee(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(*_: object) -> None:
        raise error("no room")

    monkeypatch.setattr("lgvit_edge.runtime.backends.ort.open_chain", fail)
    with pytest.raises(BackendError, match=r"onnxruntime backend cannot open .*no room.*--batch"):
        Session.open(bundle)
    monkeypatch.setattr("lgvit_edge.runtime.backends.ort.open_chain", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # a mistake in a program stays visible
        Session.open(bundle)
    assert not issubclass(ZeroDivisionError, LGViTEdgeError)
