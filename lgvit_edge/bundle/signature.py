"""The signature of a bundle, ``signature.json``: who vouches for which files.

One signature covers the whole folder. It lists every file that the manifest does not list, the
manifest itself among them, with hash and size; the manifest lists the rest. So each byte that is
read hangs on it, and a file more or less is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from lgvit_edge._support.files import read_bytes
from lgvit_edge._support.owners import in_other_hands
from lgvit_edge.bundle.codec import loads, to_json
from lgvit_edge.bundle.keys import PublicKey
from lgvit_edge.bundle.layout import ENGINES, LOCK, MANIFEST, SIGNATURE
from lgvit_edge.bundle.manifest import FileSpec, Manifest
from lgvit_edge.bundle.plain_files import sha256
from lgvit_edge.errors import BundleError

SIGNATURE_SCHEMA = 1
MAX_FILES = 10_000  # of a bundle; 1000 segments in parts are 3000
_MAX_BYTES = 4 * 1024 * 1024
_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True)
class Signature:
    """The content of ``signature.json``."""

    schema_version: int
    key: str  # the signer's public key, 32 bytes in hexadecimal
    files: tuple[FileSpec, ...]  # that the manifest does not list, sorted by name
    signature: str  # of ``message``, 64 bytes in hexadecimal

    def __post_init__(self) -> None:
        for name, size in (("key", 64), ("signature", 128)):
            text = getattr(self, name)
            if len(text) != size or not _HEX.fullmatch(text):
                raise ValueError(f"{name} must be {size} hexadecimal digits")

    @property
    def signer(self) -> PublicKey:
        """Return the key that it says it was made with."""
        return PublicKey(bytes.fromhex(self.key))

    def dumps(self) -> str:
        """Return it as JSON text; no other text stands for the same signature."""
        return json.dumps(to_json(self), indent=1, ensure_ascii=False) + "\n"


def message(files: Sequence[FileSpec]) -> bytes:
    """Return what is signed: a line for each file, which says what the signature is for."""
    lines = [f"lgvit-edge bundle {SIGNATURE_SCHEMA}"]
    lines += [f"{spec.sha256} {spec.bytes} {spec.file}" for spec in files]  # names have no breaks
    return "\n".join(lines).encode()


def read_signature(root: Path) -> Signature:
    """Read a bundle's signature, without checking who made it.

    Raises:
        BundleError: there is none, or it is damaged.
    """
    path = root / SIGNATURE
    try:
        text = read_bytes(path, _MAX_BYTES)
    except FileNotFoundError:
        raise BundleError(f"{root} is not signed; {_to_sign(root)}") from None
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}; {_to_sign(root)}") from None
    found = loads(
        Signature,
        text,
        version=SIGNATURE_SCHEMA,
        limit=_MAX_BYTES,
        where=str(path),
        cure=_to_sign(root),
        error=BundleError,
    )
    if found.dumps().encode() != text or not found.signer.signed(
        message(found.files), bytes.fromhex(found.signature)
    ):
        raise BundleError(f"{path} is damaged or forged: it is no signature; {_to_sign(root)}")
    return found


def trusted_signature(root: Path, keys: Sequence[PublicKey]) -> Signature:
    """Read a bundle's signature, and refuse it unless one of the keys made it.

    Raises:
        BundleError: there is none, it is damaged, or of another key.
    """
    found = read_signature(root)
    if found.signer not in keys:
        raise BundleError(
            f"{root} is signed with a key that is not trusted here: expected "
            f"{' or '.join(key.id for key in keys)}, found {found.signer.id}; copy the bundle from "
            f"where you trust it, or sign it with a trusted key: {_to_sign(root)}"
        )
    return found


def check_signed_manifest(root: Path, signature: Signature, text: bytes) -> None:
    """Refuse another manifest than the one that was signed.

    Raises:
        BundleError: it is another.
    """
    if FileSpec(MANIFEST, hashlib.sha256(text).hexdigest(), len(text)) not in signature.files:
        raise BundleError(_changed(root, MANIFEST))


def check_signed_files(
    root: Path, manifest: Manifest, signature: Signature, *, more_engines: bool = False
) -> None:
    """Check that a folder holds the files that were signed, no more and no fewer, unchanged.

    Those that the manifest lists are not hashed here. With ``more_engines``, engines may have been
    added since.

    Raises:
        BundleError: it does not; names the first file.
    """
    signed = {spec.file: spec for spec in signature.files}
    known = signed.keys() | {spec.file for spec in manifest.files()} | {SIGNATURE}
    found = set(files_in(root))
    added = sorted(found - known)
    if more_engines:
        added = [name for name in added if not name.startswith(f"{ENGINES}/")]
    if added:
        raise BundleError(
            f"{root / added[0]} is not covered by the signature, so it came later; remove it, or "
            f"{_to_sign(root)}"
        )
    if missing := sorted(known - found):
        raise BundleError(
            f"{root / missing[0]} is missing, though it was signed; copy the bundle again, or "
            f"{_to_sign(root)}"
        )
    for name, spec in signed.items():
        path = root / name
        try:
            same = path.stat().st_size == spec.bytes and sha256(path) == spec.sha256
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}") from None
        if not same:
            raise BundleError(_changed(root, name))


def check_owners(root: Path) -> None:
    """Refuse a folder that others can change between a check and the use, or while it is used.

    ``root`` must be free of links.

    Raises:
        BundleError: it belongs to others, or they may write to it, or to a folder above.
    """
    if fault := in_other_hands(root, files_in(root)):
        raise BundleError(
            f"{fault}, so what was checked could be changed before it is used; expected files and "
            "folders that only this user and root can write: run chmod go-w or chown on it (or, "
            f"of the bundle as a whole: chmod -R go-w {quote(str(root))})"
        )


def files_in(root: Path) -> list[str]:
    """Return the names of all files in a bundle's folder, with ``/`` separators, but for locks.

    Raises:
        BundleError: one is a link, a pipe or a device, or there are far too many.
    """
    found = []
    for name in _walk(root, ""):
        found.append(name)
        if len(found) > MAX_FILES:
            raise BundleError(f"{root} holds more than {MAX_FILES} files: it is no bundle")
    return sorted(found)


def _walk(folder: Path, prefix: str, depth: int = 0) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            listed = list(entries)
    except OSError as error:
        raise BundleError(f"{folder} cannot be read: {error.strerror}") from None
    for entry in listed:
        if entry.is_dir(follow_symlinks=False) and depth < 8:
            yield from _walk(folder / entry.name, f"{prefix}{entry.name}/", depth + 1)
        elif not entry.is_file(follow_symlinks=False):
            raise BundleError(
                f"{folder / entry.name} is no plain file: a bundle holds files alone; remove it, "
                "or copy the bundle with: cp -rL"
            )
        elif entry.name != LOCK:  # of a command that changes the bundle; nobody reads it
            yield prefix + entry.name


def _changed(root: Path, name: str) -> str:
    return (
        f"{root / name} is not the file that was signed; copy the bundle again, or, if the change "
        f"is meant, as that of tune, build, bench and doctor --data, {_to_sign(root)}"
    )


def _to_sign(root: Path) -> str:
    return f"run, where the key is: lgvit-edge bundle sign {quote(str(root))} --key KEY"
