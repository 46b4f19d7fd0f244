"""The bundle directory: the only file that knows how it lies on disk.

| file | what |
|---|---|
| manifest.json | written last: a directory without it is not a bundle |
| segments/segment_I.onnx | one graph per segment |
| segments/weights.bin | every weight once, shared by all graphs |
| baseline.onnx | the backbone without exits |
| parity.npz | sample inputs and the logits PyTorch gave at every exit |
| engines/TAG/build.json | what the engines beside it were compiled from and for |
| engines/TAG/segment_I.engine, baseline.engine | plain TensorRT plans |
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lgvit_edge._support.files import PARTIAL, leftovers, locked, replacing
from lgvit_edge.bundle.manifest import MAX_BYTES, FileSpec, Manifest
from lgvit_edge.bundle.points import OperatingPoint
from lgvit_edge.errors import BundleError, ExportError

MANIFEST = "manifest.json"
BASELINE = "baseline.onnx"
WEIGHTS = "segments/weights.bin"
PARITY = "parity.npz"
ENGINES = "engines"
BUILD = "build.json"
_LOCK = ".lock"  # held by whoever changes a bundle in its place


def segment_file(index: int) -> str:
    """Name of segment ``index`` inside the bundle."""
    return f"segments/segment_{index}.onnx"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle whose files are the ones its manifest vouches for."""

    root: Path
    manifest: Manifest

    def path(self, spec: FileSpec) -> Path:
        """Where a file of the bundle lies."""
        return self.root / spec.file


def open_bundle(root: str | Path, *, verify: bool = True) -> Bundle:
    """Open a bundle; runs nothing from it.

    Args:
        root: the directory ``lgvit-edge export`` wrote.
        verify: check the hash of every file (about 0.5 s for ViT-B).

    Raises:
        BundleError: missing, damaged, unsafe or of another schema version.
    """
    root = Path(root)
    try:
        with (root / MANIFEST).open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        what = "no such directory" if not root.exists() else f"no readable {MANIFEST}"
        hint = f"--ckpt model.pt --out {root}"
        if root.is_file():
            what, hint = "it is a file", f"--ckpt {root} --out out/"
        raise BundleError(
            f"{root} is not a bundle: {what} ({error.strerror}); run: lgvit-edge export {hint}"
        ) from None
    bundle = Bundle(root, Manifest.loads(text))
    top = root.resolve()
    for spec in bundle.manifest.files():
        path = bundle.path(spec)
        if not path.resolve().is_relative_to(top):
            raise BundleError(f"{spec.file} leaves the bundle {root}")
        if not path.is_file():
            raise BundleError(f"{root} is incomplete: {spec.file} is missing; export it again")
        if verify and sha256(path) != spec.sha256:
            raise BundleError(
                f"{path} is not the file that was exported: its sha256 differs from the "
                "manifest's; copy the bundle again or export it again"
            )
    return bundle


@contextlib.contextmanager
def writing(root: Path) -> Iterator[Path]:
    """Yield an empty directory to write a bundle into; put it in place of ``root`` at the end.

    Until then ``root`` is untouched, so a failed, interrupted or killed export leaves the old
    bundle or none. The body writes the manifest last (``finish``). One at a time writes to a
    ``root``, so that what lies beside it was left by one that was killed, wherever it ran.

    Raises:
        ExportError: ``root`` holds something that is not a bundle, cannot be written, or is being
            written.
    """
    root = root.absolute()
    staging, aside = (root.with_name(f".{root.name}{kind}") for kind in (PARTIAL, ".old"))
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with locked(root.with_name(f".{root.name}{_LOCK}")):
            if aside.exists() and not root.exists():
                aside.rename(root)  # killed between the two renames: this is the only copy
            _check_replaceable(root)
            for left in (staging, aside):
                shutil.rmtree(left, ignore_errors=True)
            try:
                (staging / "segments").mkdir(parents=True)
                yield staging
                _swap(staging, root, aside)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except BlockingIOError as holder:
        raise ExportError(
            f"{root} is being written by {holder}; wait for it, or name another --out"
        ) from None
    except OSError as error:
        raise ExportError(f"cannot write {root}: {error.strerror or error}") from error


def finish(staging: Path, manifest: Manifest) -> None:
    """Write the manifest, which makes ``staging`` a bundle."""
    with (staging / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(manifest.dumps())
        file.flush()
        os.fsync(file.fileno())


def add_points(root: Path, identity: str, points: dict[str, OperatingPoint]) -> None:
    """Write operating points into a bundle's manifest; its graphs and engines stay as they are.

    Points of other names are kept.

    Args:
        root: the bundle.
        identity: of the manifest the points were found with.
        points: by name.

    Raises:
        BundleError: the bundle is another by now, or cannot be written.
    """
    try:
        # Two runs must not lose each other's points, nor write them into what an export puts here.
        with locked(root / _LOCK, wait=f"changes {root}"):
            manifest = open_bundle(root, verify=False).manifest
            if manifest.identity != identity:
                raise BundleError(
                    f"{root} was exported again meanwhile: the points are not its own; run tune "
                    "again"
                )
            added = dataclasses.replace(manifest, points=manifest.points | points)
            with replacing(root / MANIFEST) as partial:
                partial.write_text(added.dumps(), encoding="utf-8")
    except OSError as error:
        raise BundleError(f"cannot write {root / MANIFEST}: {error.strerror or error}") from None


def describe(staging: Path, name: str) -> FileSpec:
    """Name and hash of a file just written."""
    return FileSpec(name, sha256(staging / name))


def sha256(path: Path) -> str:
    """Hash of a file's content, as hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _swap(staging: Path, root: Path, aside: Path) -> None:
    with contextlib.ExitStack() as stack:
        if root.is_dir():  # operating points being written come first; that takes a moment
            stack.enter_context(locked(root / _LOCK, wait=f"changes {root}"))
        _check_replaceable(root)  # again: the export took its time
        try:
            with contextlib.suppress(FileNotFoundError):
                root.rename(aside)
            staging.rename(root)
        finally:  # Ctrl-C between the two renames included
            if aside.exists() and not root.exists():
                aside.rename(root)
            shutil.rmtree(aside, ignore_errors=True)


def _check_replaceable(root: Path) -> None:
    """Refuse what is neither missing, nor an empty folder, nor a bundle and nothing else."""
    if root.exists() and not _may_replace(root):
        raise ExportError(
            f"{root} exists and is not a bundle, or holds more than one: it is left alone; name "
            "another --out, or remove it first"
        )


def _may_replace(root: Path) -> bool:
    if not root.is_dir():
        return False
    # A killed run may have left these.
    begun = leftovers(MANIFEST)
    names = {path.name for path in root.iterdir() if not fnmatch.fnmatchcase(path.name, begun)}
    names.discard(_LOCK)
    if not names:
        return True
    try:
        found = json.loads((root / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    ours = isinstance(found, dict) and {"schema_version", "segments", "baseline"} <= found.keys()
    return ours and names <= {MANIFEST, "segments", ENGINES, BASELINE, PARITY}
