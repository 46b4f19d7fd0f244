"""Tells which format a file of weights has, and refuses by name what no reader here reads."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

from lgvit_edge.errors import CheckpointError

AGAIN = "copy or download it again"
STATE_DICT = "in the program it is from, run: torch.save(model.state_dict(), 'weights.pth')"
MERGE = "merge it, in Python: model.merge_and_unload().save_pretrained('merged')"
_JAX = "load it into its model with timm or transformers, then run: " + STATE_DICT.split("run: ")[1]
_UNPACK = "unpack it, and give the file of weights inside"


@dataclass(frozen=True)
class _Format:
    """Describes a format that is not read."""

    name: str
    cure: str
    begins: tuple[bytes, ...] = ()  # with one of these
    suffixes: tuple[str, ...] = ()
    members: tuple[str, ...] = ()  # a zip archive with an entry that ends so


_FORMATS = (
    _Format("a pointer of Git LFS, not the file itself", "run: git lfs pull", (b"version https:",)),
    _Format(
        "a web page, not the file itself",
        "download what the page's link names",
        (b"<!DOCTYPE", b"<!doctype", b"<html", b"<HTML"),
    ),
    _Format("a GGUF file", STATE_DICT, (b"GGUF",)),
    _Format("an HDF5 file, as Keras writes", _JAX, (b"\x89HDF",), (".h5", ".hdf5")),
    _Format("a NumPy array", _JAX, (b"\x93NUMPY",)),
    _Format(
        "an archive of files",
        _UNPACK,
        (b"\x1f\x8b", b"BZh", b"7z\xbc\xaf", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"Rar!", b"ustar"),
    ),
    _Format("an ONNX graph", STATE_DICT, (), (".onnx",)),
    _Format("a graph of TensorFlow", STATE_DICT, (), (".pb", ".tflite", ".index")),
    _Format("a file of Flax", _JAX, (), (".msgpack",)),
    _Format("a compiled engine", STATE_DICT, (), (".engine", ".plan", ".trt", ".mlmodel")),
    _Format(
        "a shard of a distributed checkpoint",
        "run: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER weights.pth",
        (),
        (".distcp",),
    ),
    _Format("a NumPy archive, as JAX models are published", _JAX, (), (".npz",), (".npy",)),
    _Format(
        "a TorchScript program",
        "if you trust it, run: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')",
        (),
        (),
        ("/constants.pkl",),
    ),
    _Format("a program of torch.export", STATE_DICT, (), (), ("archive_format", "_program.json")),
    _Format("a Keras model", _JAX, (), (".keras",), ("model.weights.h5",)),
)


def begins(path: Path) -> bytes:
    """Returns the first bytes of a file; of a tar archive its mark, which stands further on."""
    with path.open("rb") as file:
        head = file.read(262)
    return head[257:] if head[257:] == b"ustar" else head


def is_zip(path: Path) -> bool:
    """Says whether a file begins as a zip archive, as those of ``torch.save`` do."""
    return begins(path).startswith(b"PK\x03\x04")


def is_safetensors(path: Path) -> bool:
    """Says whether a file begins as safetensors do, whatever it is called."""
    return begins(path)[8:9] == b"{" and not is_zip(path)


def require_weights(path: Path) -> None:
    """Refuses a file that is missing, empty, cut off, or of a format that is not read.

    Raises:
        CheckpointError: says what the file is, and what to do.
    """
    if not path.is_file():
        raise CheckpointError(f"no such checkpoint: {path}")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty; {AGAIN}")
    members = _checked(path) if is_zip(path) else {}
    saved = any(name.endswith("/data.pkl") for name in members)
    head = begins(path)
    # What is inside counts, whatever it is called.
    named = "" if saved or is_safetensors(path) else path.suffix.lower()
    for kind in _FORMATS:
        if (
            head.startswith(kind.begins)
            or named in kind.suffixes
            or any(name.endswith(kind.members) for name in members)
        ):
            raise CheckpointError(
                f"{path} is {kind.name}; expected safetensors or a file of torch.save; {kind.cure}"
            )
    if members and not saved:
        raise CheckpointError(
            f"{path} is a zip archive without weights, found {', '.join(list(members)[:4])}; "
            f"expected a file of torch.save; {_UNPACK}"
        )
    if any(members.values()):
        raise CheckpointError(
            f"{path}: expected a file of torch.save, which is not compressed, found an archive "
            f"that another program packed; {STATE_DICT}"
        )


def _checked(path: Path) -> dict[str, bool]:
    """Returns what a zip archive holds, and what of it is compressed, once its checksums are right.

    PyTorch looks at no checksum: a changed number would load unseen.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            members = {entry.filename: entry.compress_type != 0 for entry in entries}
            summed = any(entry.CRC for entry in entries)  # torch.save can be told to leave them out
            damaged = archive.testzip() if summed and not any(members.values()) else None
    except Exception:  # damaged bytes make the reader raise nearly anything
        raise CheckpointError(
            f"{path} is cut off or damaged: it begins as a file of torch.save, but its end is not "
            f"one; {AGAIN}"
        ) from None
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: {damaged} in it has another checksum; {AGAIN}")
    return members
