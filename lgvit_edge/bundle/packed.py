"""A bundle as one file: a plain tar archive, of which the bundle decides every byte, and its hash.

Names are sorted; there are no times, owners, modes, links or folders. So reading is to compare: a
header must be the one that ``pack`` writes for that name and size, and nothing else passes. Behind
the archive's end stands the SHA-256 of all before it, which tar ignores. Nothing is compressed, so
nothing can unpack to more than it is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import IO

from lgvit_edge._support.files import reading
from lgvit_edge._support.outputs import replacing
from lgvit_edge.bundle.directory import Bundle, describe, open_bundle, writing
from lgvit_edge.bundle.keys import PublicKey
from lgvit_edge.bundle.layout import SIGNATURE
from lgvit_edge.bundle.manifest import FileSpec
from lgvit_edge.bundle.signature import MAX_FILES
from lgvit_edge.bundle.signing import check_not_stale, other_files
from lgvit_edge.errors import BundleError, ExportError, UsageError

_BLOCK = 512
_END = bytes(2 * _BLOCK)
_CHUNK = 1 << 20
_DEEPEST = 4  # folders around a file; bundles have 2


@dataclass(frozen=True)
class Packed:
    """What became of ``pack`` or ``unpack``.

    Attributes:
        files: how many there are.
        bytes: of the archive.
        sha256: of the archive without its last line, which says it.
        digest: of the manifest, which names the bundle.
        signer: whose signature it bears; of ``unpack``, None also where none was asked for.
    """

    files: int
    bytes: int
    sha256: str
    digest: str
    signer: PublicKey | None


def pack(root: str | Path, out: Path) -> Packed:
    """Write a bundle as one file: the same bytes for the same bundle, wherever it is packed.

    Args:
        root: the bundle's folder.
        out: the file, replaced if it exists.

    Raises:
        BundleError: the bundle is damaged, holds what belongs to no bundle, was changed since it
            was signed, or is changed meanwhile.
        UsageError: ``out`` lies in the bundle.
        OSError: as writing does.
    """
    bundle = open_bundle(root)
    if out.resolve().is_relative_to(bundle.root.resolve()):
        raise UsageError(f"{out} lies in the bundle itself: name a file elsewhere")
    signer = check_not_stale(bundle)
    files = [*other_files(bundle), *bundle.manifest.files()]
    if signer is not None:
        files.append(describe(bundle.root, SIGNATURE))
    files.sort(key=lambda spec: spec.file)
    headers = {spec.file: _header(spec.file, spec.bytes) for spec in files}  # first, may refuse
    size = sum(_BLOCK + _padded(spec.bytes) for spec in files) + len(_END) + 65
    with replacing(out, needed=size) as partial, partial.open("wb") as archive:
        digest = hashlib.sha256()
        for data in _contents(bundle, files, headers):
            digest.update(data)
            archive.write(data)
        archive.write(f"{digest.hexdigest()}\n".encode())
    return Packed(len(files), size, digest.hexdigest(), bundle.manifest.digest, signer)


def _contents(
    bundle: Bundle, files: Sequence[FileSpec], headers: dict[str, bytes]
) -> Iterator[bytes]:
    """Yield the archive, as long as files are what their hashes say."""
    for spec in files:
        yield headers[spec.file]
        path, digest, left = bundle.path(spec), hashlib.sha256(), spec.bytes
        try:
            with reading(path) as file:
                while data := file.read(min(_CHUNK, left)):
                    digest.update(data)
                    left -= len(data)
                    yield data
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}") from None
        if left or digest.hexdigest() != spec.sha256:
            raise BundleError(f"{path} was changed while it was packed; pack the bundle again")
        yield bytes(_padded(spec.bytes) - spec.bytes)
    yield _END


def unpack(
    archive: str | Path,
    out: Path,
    *,
    replace: bool = False,
    trusted_keys: Sequence[PublicKey] | None = None,
) -> Packed:
    """Write the bundle that ``pack`` made one file of, whole or not at all.

    The files are written beside ``out``, checked as ``open_bundle`` does, and moved there in one
    step. Who has an older bundle there open keeps it.

    Args:
        archive: the file.
        out: the bundle's folder.
        replace: whether a bundle that is there is replaced.
        trusted_keys: one of these must have signed it.

    Raises:
        BundleError: it is no such archive, truncated, changed, not signed as it should be, or what
            it holds is no sound bundle.
        ExportError: ``out`` exists, holds something else, or cannot be written.
    """
    archive = Path(archive)
    try:
        with reading(archive) as source:
            size = os.fstat(source.fileno()).st_size
            _check_room(out, size)
            with writing(out, replace=replace) as staging:
                names, digest = _unpack(archive, source, size, staging)
                try:
                    bundle = open_bundle(staging, trusted_keys=trusted_keys)
                    known = {spec.file for spec in (*other_files(bundle), *bundle.manifest.files())}
                except BundleError as error:
                    text = str(error).replace(str(staging), str(out))
                    raise BundleError(f"{archive}: {text}") from None
                if more := names - known - {SIGNATURE}:
                    raise _no_archive(archive, f"{min(more)!r} does not belong to a bundle")
                for folder in (staging, *(path for path in staging.rglob("*") if path.is_dir())):
                    _sync(folder)
    except OSError as error:
        raise BundleError(f"cannot read {archive}: {error.strerror or error}") from None
    return Packed(len(names), size, digest, bundle.manifest.digest, bundle.signer)


def _unpack(path: Path, source: IO[bytes], size: int, staging: Path) -> tuple[set[str], str]:
    """Write the files of an archive, and return their names and its hash."""
    digest, before = hashlib.sha256(), ""
    seen: set[str] = set()  # as file systems see names that do not tell cases apart
    names: set[str] = set()

    def read(length: int) -> bytes:
        data = source.read(length)
        if len(data) < length:
            raise _no_archive(path, "it is truncated")
        digest.update(data)
        return data

    _mend_mode(staging)
    while (block := read(_BLOCK)) != bytes(_BLOCK):
        spec = _entry(path, block)
        if spec.file <= before or spec.file.casefold() in seen:
            raise _no_archive(path, f"{spec.file!r} is there twice, or not in its place")
        before = spec.file
        seen.add(spec.file.casefold())
        names.add(spec.file)
        if len(names) > MAX_FILES or spec.file.count("/") > _DEEPEST:
            raise _no_archive(path, "it has more files or folders than any bundle")
        if spec.bytes > size - source.tell():
            raise _no_archive(path, "it is truncated")
        target = staging / spec.file
        try:
            for folder in reversed(target.relative_to(staging).parents[:-1]):
                if not (staging / folder).exists():
                    (staging / folder).mkdir()
                _mend_mode(staging / folder)
            number = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except (FileExistsError, NotADirectoryError):
            raise _no_archive(path, f"{spec.file!r} lies where another file is") from None
        with open(number, "wb") as file:
            left = spec.bytes
            while left:
                data = read(min(_CHUNK, left))
                file.write(data)
                left -= len(data)
            file.flush()
            os.fsync(number)
        if read(_padded(spec.bytes) - spec.bytes).strip(b"\0"):
            raise _no_archive(path, f"behind {spec.file!r} there is something hidden")
    if read(_BLOCK) != bytes(_BLOCK):
        raise _no_archive(path, "its end is missing")
    hashed = digest.hexdigest()
    if source.read(66) != f"{hashed}\n".encode():
        raise _no_archive(path, "it was changed or truncated: its hash differs")
    return names, hashed


def _entry(path: Path, block: bytes) -> FileSpec:
    """Return the name and size in a header, which must be one that ``pack`` writes."""
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        spec = FileSpec(info.name, "0" * 64, info.size)  # refuses names that leave the folder
        if _header(spec.file, spec.bytes) == block:
            return spec
        why = f"the entry {spec.file!r} is not as one writes it"
    except (tarfile.HeaderError, BundleError, ValueError) as error:  # no text: ValueError
        why = str(error)[:300]
    raise _no_archive(path, why)


def _header(name: str, size: int) -> bytes:
    """Return the header of a file: plain, readable by all, of nobody, without a time.

    Raises:
        BundleError: the name or the size is beyond what a header holds.
    """
    info = tarfile.TarInfo(name)
    info.size = size
    try:
        return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    except ValueError as error:
        raise BundleError(f"{name!r} of {size} bytes cannot be packed: {error}") from None


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _no_archive(path: Path, why: str) -> BundleError:
    return BundleError(
        f"{path} is not what lgvit-edge bundle pack writes: {why}; copy it again, or pack the "
        "bundle again"
    )


def _check_room(out: Path, size: int) -> None:
    place = Path(os.path.abspath(out))
    while not place.exists():
        place = place.parent
    if (free := shutil.disk_usage(place).free) < size:
        raise ExportError(
            f"cannot write {out}: it needs {size:,} bytes, and {free:,} are free; name a place "
            f"elsewhere with --out, or free some in {quote(str(place))}"
        )


def _mend_mode(folder: Path) -> None:
    """Let nobody but this user write there, whatever the umask is."""
    folder.chmod(folder.stat().st_mode & ~0o022)


def _sync(folder: Path) -> None:
    """Have the names in a folder on the disk before it takes its place: power may fail."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
