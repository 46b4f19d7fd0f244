"""What is fuzzed: every kind of file and text that may come from a stranger.

A target changes the content of one file, and lets lgvit-edge read it. Allowed are an
``LGViTEdgeError`` and a right answer; anything else is a finding.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mutations
import numpy as np
from PIL import Image

from lgvit_edge.policies import POLICIES

Try = Callable[[bytes], object]


@dataclass(frozen=True)
class Target:
    """One kind of file: its true contents, how they are changed, and what reads them.

    ``bases`` takes the folder that ``make`` filled. ``reader`` takes it too, and a folder to write
    to; it returns what reads one content. ``cheap`` ones run in microseconds, without torch and
    ONNX Runtime.

    To add one: put its true file into ``make``, and the target into ``TARGETS``. It must refuse
    some of the changed contents. Then correct their number in docs/security.md.
    """

    name: str
    bases: Callable[[Path], list[bytes]]
    change: mutations.Change
    reader: Callable[[Path, Path], Try]
    cheap: bool = False


def make(root: Path) -> None:
    """Fill a folder with small true files of every kind: a bundle, checkpoints, images, records."""
    import foreign_states
    import torch
    from safetensors.torch import save_file

    from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
    from lgvit_edge.export import ExportOptions, export_bundle
    from lgvit_edge.images.spec import Preprocess
    from lgvit_edge.model import LGViT, save_checkpoint
    from lgvit_edge.model.randomised import randomised

    sizes = dict(image_size=16, patch_size=8, hidden_size=16, num_blocks=2, num_heads=2)
    config = LGViTConfig(
        family="vit",
        **sizes,  # type: ignore[arg-type]
        intermediate_size=32,
        num_classes=3,
        exits=(ExitConfig(1, "lph", 3),),
        labels=("cat", "dog", "owl"),
        preprocess=Preprocess(resize=16),
    )
    torch.manual_seed(0)
    model = randomised(LGViT(config))
    export_bundle(model, root / "bundle", ExportOptions(batch=(1, 2, 2)))
    save_checkpoint(model, root / "model.pt")
    save_checkpoint(model, root / "model.safetensors")
    state = foreign_states.timm_state(0)
    torch.save({"model": state, "epoch": 3}, root / "timm.pth")
    torch.save({"model": state}, root / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file(state, root / "timm.safetensors")
    kept = foreign_states.huggingface_state("vit", tokens=1, classifiers=("classifier",), depth=2)
    settings = foreign_states.HF_CONFIG | {"num_hidden_layers": 2, "model_type": "vit"}
    settings |= {"architectures": ["ViTForImageClassification"]}
    weights = "model.safetensors"
    foreign_states.write_directory(root / "folder", settings, kept.state, weights)
    (root / "folder" / "preprocessor_config.json").write_text(json.dumps(_PREPROCESSOR))
    make_signed(root)


def make_signed(root: Path) -> None:
    """Add a key, a bundle that it signed, and that bundle as one file."""
    from lgvit_edge.bundle.keys import make_keys, read_private_key
    from lgvit_edge.bundle.packed import pack
    from lgvit_edge.bundle.signing import sign_bundle

    make_keys(root / "key", None)
    shutil.copytree(root / "bundle", root / "signed")
    sign_bundle(root / "signed", read_private_key(root / "key", lambda: b""))
    pack(root / "signed", root / "signed.tar")


def relist(bundle: Path) -> None:
    """Write the sizes and hashes that the files have into the manifest, as an attacker would."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())

    def mend(value: Any) -> None:
        if isinstance(value, dict) and {"file", "sha256", "bytes"} <= value.keys():
            data = (bundle / value["file"]).read_bytes()
            value |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        for part in value.values() if isinstance(value, dict) else value:
            if isinstance(part, (dict, list)):
                mend(part)

    mend(manifest)
    path.write_text(json.dumps(manifest))


def _a_manifest(root: Path, work: Path) -> Try:
    from lgvit_edge.bundle.manifest import Manifest

    def read(content: bytes) -> None:
        manifest = Manifest.loads(content)
        manifest.files(), manifest.identity, manifest.begins
        exits = range(1, len(manifest.segments) + 1)
        assert all(manifest.cumulative_macs(exit) >= 0 for exit in exits)
        assert Manifest.loads(manifest.dumps()) == manifest

    return read


def _decided(policy: Any) -> None:
    """Every policy that is accepted decides, and is the same after a visit to JSON."""
    from lgvit_edge.policies import Departures, from_json

    assert from_json(json.loads(json.dumps(policy.to_json()))) == policy
    decisions, answered = Departures(policy, 2, len(_LOGITS)), 0
    for _ in range(3):
        left = decisions.see(_LOGITS[decisions.rows])
        assert np.isfinite(left.scores).all()
        answered += len(left.rows)
    assert answered == len(_LOGITS)


def _a_policy_text(root: Path, work: Path) -> Try:
    from lgvit_edge.policies import parse

    return lambda content: _decided(parse(content.decode("utf-8", "surrogatepass")))


def _a_policy(root: Path, work: Path) -> Try:
    from lgvit_edge._support import finite_json
    from lgvit_edge.policies import from_json

    def read(content: bytes) -> None:
        try:
            data = finite_json.loads(content)
        except (ValueError, RecursionError):
            return  # whoever holds the file says so
        _decided(from_json(data))

    return read


def _written(name: str, work: Path, read: Callable[[Path], object]) -> Try:
    path = work / name

    def write_and_read(content: bytes) -> None:
        path.write_bytes(content)
        read(path)

    return write_and_read


def _a_record(root: Path, work: Path) -> Try:
    from lgvit_edge.benchmarks.compare import compare_records

    other = work / "other.json"
    other.write_bytes(_RECORD)
    return _written("record.json", work, lambda path: compare_records([other, path], force=True))


def _a_build(root: Path, work: Path) -> Try:
    from lgvit_edge.bundle.builds import read_build

    return _written("build.json", work, lambda path: read_build(path.parent).tag)


def _a_choice(root: Path, work: Path) -> Try:
    from lgvit_edge.runtime import selection

    os.environ["LGVIT_EDGE_CACHE"] = str(work)
    (work / "bundle").mkdir()
    (work / "bundle" / "backend-1.json").write_bytes(_CHOICE)
    return _written("bundle/backend-0.json", work, lambda path: selection.known_choices())


def _a_label_file(root: Path, work: Path) -> Try:
    from lgvit_edge.images.labels import read_labels

    (work / "a.png").touch()
    (work / "b c.png").touch()
    return _written("labels.csv", work, lambda path: read_labels(work, path, 3, _NAMES))


def _a_list(root: Path, work: Path) -> Try:
    from lgvit_edge.images.lists import read_names

    return _written("labels.txt", work, lambda path: read_names(path, 3, "classes"))


def _a_signature(root: Path, work: Path) -> Try:
    """No other text than the true one passes."""
    from lgvit_edge.bundle.keys import read_trusted
    from lgvit_edge.bundle.signature import check_signed_manifest, trusted_signature

    keys, true = read_trusted([root / "key.pub"]), (root / "signed/signature.json").read_bytes()
    manifest = (root / "signed/manifest.json").read_bytes()

    def read(path: Path) -> None:
        check_signed_manifest(path.parent, trusted_signature(path.parent, keys), manifest)
        assert path.read_bytes() == true

    return _written("signature.json", work, read)


def _trusted_keys(root: Path, work: Path) -> Try:
    from lgvit_edge.bundle.keys import read_trusted

    return _written("key.pub", work, lambda path: [key.id for key in read_trusted([path])])


def _packed(root: Path, work: Path) -> Try:
    """What is unpacked is packed as it was."""
    from lgvit_edge.bundle.packed import pack, unpack

    def read(path: Path) -> None:
        unpack(path, work / "out", replace=True)
        pack(work / "out", work / "again.tar")
        assert path.read_bytes() == (work / "again.tar").read_bytes()

    return _written("bundle.tar", work, read)


def _an_image(root: Path, work: Path) -> Try:
    from lgvit_edge.images.pixels import decode

    def read(path: Path) -> None:
        pixels = decode(path)
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3

    return _written("image.png", work, read)


def _a_bundle_file(file: str, root: Path, work: Path) -> Try:
    """Let a session open and use a bundle in which one file differs, and is listed as it is."""
    from lgvit_edge.runtime import Session

    bundle = Path(shutil.copytree(root / "bundle", work / "bundle"))
    image = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)

    def read(content: bytes) -> None:
        (bundle / file).write_bytes(content)
        if file != "manifest.json":
            relist(bundle)
        with Session.open(bundle, backend="onnxruntime", threads=1) as session:
            for policy in ("never", session.policy):
                session.policy = policy
                for result in (session.predict(image), *session.predict_batch([image] * 2)):
                    assert 0 <= result.confidence <= 1
                    assert 1 <= result.exit <= len(session.manifest.segments)
            session.check_parity()

    return read


def _a_checkpoint(name: str, root: Path, work: Path) -> Try:
    import torch

    from lgvit_edge.model.checkpoints.loading import load_backbone, load_checkpoint

    torch.set_num_threads(1)
    load = load_checkpoint if name.startswith("model") else partial(load_backbone, num_heads=4)

    def read(path: Path) -> None:
        model = load(path)
        side = model.config.image_size
        with torch.inference_mode():
            model(torch.zeros(1, 3, side, side))

    return _written(name, work, read)


def _a_folder_file(name: str, root: Path, work: Path) -> Try:
    from lgvit_edge.model.checkpoints.loading import load_backbone

    shutil.copytree(root / "folder", work / "folder")
    return _written(f"folder/{name}", work, lambda path: load_backbone(path.parent))


def _file(name: str, root: Path) -> list[bytes]:
    return [(root / name).read_bytes()]


def _given(contents: list[bytes], root: Path) -> list[bytes]:
    return contents


def _examples(root: Path) -> list[bytes]:
    return [kind.example.encode() for kind in POLICIES.values()]


def _policies(root: Path) -> list[bytes]:
    return [json.dumps(kind().to_json()).encode() for kind in POLICIES.values()]


def _images(root: Path) -> list[bytes]:
    """One of every format that is read, small, with the modes that formats have."""
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (12, 9, 3), np.uint8))
    exif = Image.Exif()
    exif[274] = 6  # lies on its side
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (colour, "PNG", {}),
        (colour.convert("P"), "PNG", {"transparency": 3}),
        (colour.convert("RGBA"), "PNG", {"interlace": 1}),
        (Image.fromarray(rng.integers(0, 65536, (8, 8), np.uint16)), "PNG", {}),
        (colour, "JPEG", {"exif": exif}),
        (colour, "JPEG", {"progressive": True}),
        (colour.convert("CMYK"), "JPEG", {}),
        (colour, "WEBP", {}),
        (colour, "WEBP", {"lossless": True}),
        (colour, "BMP", {}),
        (colour.convert("P"), "GIF", {}),
        (colour, "PPM", {}),
        (colour, "TIFF", {}),
        (colour, "TIFF", {"compression": "tiff_lzw"}),
        (colour.convert("L"), "TIFF", {"compression": "tiff_adobe_deflate"}),
    ]
    contents = []
    for image, kind, options in kinds:
        file = io.BytesIO()
        image.save(file, kind, **options)
        contents.append(file.getvalue())
    return contents


def _image(rng: random.Random, data: bytes) -> bytes:
    return (mutations.png if data[:4] == b"\x89PNG" else mutations.raw)(rng, data)


_LOGITS = np.array([[0.5, 2.5, -1.0], [90.0, -90.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
_NAMES = ("cat", "dog", "great white")
_PREPROCESSOR = {
    "do_resize": True,
    "size": {"height": 28, "width": 28},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "image_processor_type": "ViTImageProcessor",
}
_RECORD = json.dumps(
    {
        "accuracy": 0.8,
        "latency_ms": {"mean": 5.0, "p99": 7.0},
        "baseline": {"latency_ms": {"mean": 9.0}},
        "speedup": {"wall_clock": 1.8, "macs": 1.9},
        "unstable": ["only 10 samples"],
        "env": {"cpu": "x", "cores": 2, "runtime": {"backend": "onnxruntime", "threads": 2}},
        "bundle": {"precision": "fp32", "image_size": 16, "classes": 3},
        "samples": 10,
        "mix": None,
    }
).encode()
_CHOICE = json.dumps(
    {
        "backend": "onnxruntime",
        "precision": None,
        "measured": {"onnxruntime": 1.5},
        "refused": {},
        "bundle": "/out",
        "machine": "x",
        "date": "2026-01-01T00:00:00Z",
    }
).encode()
_BUILD = json.dumps(
    {
        "schema_version": 1,
        "library": "tensorrt",
        "version": "10.3.0",
        "platform": "linux-aarch64",
        "gpu": "Orin",
        "multiprocessors": 8,
        "compute_capabilities": ["8.7"],
        "precision": "fp16",
        "batch": [1, 2, 4],
        "weights_sha256": ["0" * 64],
        "workspace": None,
        "optimization_level": 3,
        "tolerance": 0.05,
        "engines": {
            "segment_0": {
                "file": "segment_0.engine",
                "sha256": "0" * 64,
                "onnx_sha256": "1" * 64,
                "bytes": 1000,
                "seconds": 1.5,
            }
        },
        "warnings": [],
    }
).encode()

_CONFIG, _PRE, _SAFE = "config.json", "preprocessor_config.json", "model.safetensors"
_json, _graph = mutations.json_text, mutations.onnx_graph
_samples = partial(mutations.archive, mutations.npy)
_torch_file = partial(mutations.archive, mutations.checkpoint_member)
TARGETS = [
    Target("manifest", partial(_file, "bundle/manifest.json"), _json, _a_manifest, cheap=True),
    Target(
        "policy-text",
        _examples,
        mutations.texts,
        _a_policy_text,
        cheap=True,
    ),
    Target(
        "policy",
        _policies,
        _json,
        _a_policy,
        cheap=True,
    ),
    Target("record", partial(_given, [_RECORD]), _json, _a_record, cheap=True),
    Target("build", partial(_given, [_BUILD]), _json, _a_build, cheap=True),
    Target("choice", partial(_given, [_CHOICE]), _json, _a_choice, cheap=True),
    Target(
        "labels",
        partial(_given, [b'file,class\na.png,0\n"b c.png",great white\n']),
        mutations.texts,
        _a_label_file,
        cheap=True,
    ),
    Target(
        "list", partial(_given, [b"cat\ndog\ngreat white\n"]), mutations.texts, _a_list, cheap=True
    ),
    Target("signature", partial(_file, "signed/signature.json"), _json, _a_signature, cheap=True),
    Target("trusted-keys", partial(_file, "key.pub"), mutations.raw, _trusted_keys, cheap=True),
    Target("packed", partial(_file, "signed.tar"), mutations.tarred, _packed),
    Target("image", _images, _image, _an_image),
    Target(
        "opened",
        partial(_file, "bundle/manifest.json"),
        _json,
        partial(_a_bundle_file, "manifest.json"),
    ),
    *(
        Target(name, partial(_file, f"bundle/{file}"), change, partial(_a_bundle_file, file))
        for name, file, change in (
            ("graph", "segments/segment_0.onnx", _graph),
            ("last-graph", "segments/segment_1.onnx", _graph),
            ("baseline", "baseline.onnx", _graph),
            ("weights", "segments/weights.bin", mutations.raw),
            ("samples", "parity.npz", _samples),
        )
    ),
    *(
        Target(name, partial(_file, name), change, partial(_a_checkpoint, name))
        for name, change in (
            ("model.pt", _torch_file),
            ("model.safetensors", mutations.safetensors),
            ("timm.pth", _torch_file),
            ("timm.safetensors", mutations.safetensors),
            ("legacy.pth", mutations.pickled),
        )
    ),
    *(
        Target(
            f"folder-{name}",
            partial(_file, f"folder/{name}"),
            change,
            partial(_a_folder_file, name),
        )
        for name, change in ((_CONFIG, _json), (_PRE, _json), (_SAFE, mutations.safetensors))
    ),
]
