"""Ed25519 keys: private ones that sign bundles, and public ones that a device trusts.

Files are PEM, as ``openssl genpkey -algorithm ed25519`` writes them too.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, TypeAlias

from lgvit_edge._support.files import reading
from lgvit_edge._support.optional import require
from lgvit_edge.errors import ExportError, UsageError, in_one_line

KeySource: TypeAlias = "str | os.PathLike[str] | bytes"  # a file; PEM, or the 32 bytes themselves

_EXTRA = "sign"
_MAX_BYTES = 1 << 16
_RAW = 32  # bytes of a public key
_PUBLIC = re.compile(rb"-----BEGIN PUBLIC KEY-----.{1,200}?-----END PUBLIC KEY-----", re.DOTALL)


@dataclass(frozen=True)
class PublicKey:
    """A key that signatures are checked with: its 32 bytes."""

    raw: bytes

    @property
    def id(self) -> str:
        """Return what people call it: the beginning of its SHA-256, 16 hexadecimal digits."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    def signed(self, message: bytes, signature: bytes) -> bool:
        """Return whether this key's owner signed the message."""
        ed25519 = require("cryptography.hazmat.primitives.asymmetric.ed25519", extra=_EXTRA)
        exceptions = require("cryptography.exceptions", extra=_EXTRA)
        try:
            ed25519.Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except (exceptions.InvalidSignature, ValueError):  # ValueError: 32 bytes that are no key
            return False
        return True


@dataclass(frozen=True)
class PrivateKey:
    """A key that signs, read from its file; its representation does not show it."""

    _key: Any

    @property
    def public(self) -> PublicKey:
        """Return what its signatures are checked with."""
        return PublicKey(self._key.public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """Return the signature, 64 bytes."""
        return bytes(self._key.sign(message))

    def __repr__(self) -> str:
        return f"PrivateKey(of {self.public.id})"


def public_file(path: Path) -> Path:
    """Return where the public half of the private key in ``path`` is kept."""
    return path.with_name(f"{path.name}.pub")


def make_keys(path: Path, passphrase: bytes | None) -> PublicKey:
    """Write a new private key, for this user alone, and its public half beside it.

    Args:
        path: of the private key; ``public_file`` of it becomes the other.
        passphrase: what the private key is encrypted with; None to leave it readable.

    Raises:
        UsageError: one of the files exists: a key is never overwritten; or the passphrase is empty
            or beyond 1000 bytes.
        ExportError: they cannot be written; neither is left behind.
        MissingDependency: cryptography is not installed.
    """
    if passphrase is not None and not 0 < len(passphrase) <= 1000:
        raise UsageError(f"a passphrase has 1 to 1000 bytes, found {len(passphrase)}")
    ed25519 = require("cryptography.hazmat.primitives.asymmetric.ed25519", extra=_EXTRA)
    forms = require("cryptography.hazmat.primitives.serialization", extra=_EXTRA)
    key = ed25519.Ed25519PrivateKey.generate()
    hidden = forms.NoEncryption()
    if passphrase is not None:
        hidden = forms.BestAvailableEncryption(passphrase)
    pem = forms.Encoding.PEM
    private = key.private_bytes(pem, forms.PrivateFormat.PKCS8, hidden)
    public = key.public_key()
    shown = public.public_bytes(pem, forms.PublicFormat.SubjectPublicKeyInfo)
    with contextlib.ExitStack() as undo:
        for file, content, mode in ((path, private, 0o600), (public_file(path), shown, 0o644)):
            try:
                _write_new(file, content, mode, undo)
            except FileExistsError:
                raise UsageError(
                    f"{file} exists, and keys are never overwritten: name another"
                ) from None
            except OSError as error:
                raise ExportError(f"cannot write {file}: {error.strerror}") from None
        undo.pop_all()
    return PublicKey(public.public_bytes_raw())


def _write_new(path: Path, content: bytes, mode: int, undo: contextlib.ExitStack) -> None:
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    undo.callback(path.unlink)
    with open(number, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(number)


def read_private_key(path: Path, passphrase: Callable[[], bytes]) -> PrivateKey:
    """Read a private key that ``make_keys`` or openssl wrote.

    Args:
        path: its file, which nobody else may read.
        passphrase: is called where the key is encrypted.

    Raises:
        UsageError: there is no such file, others can read it, it holds no private Ed25519 key, or
            the passphrase is wrong.
        MissingDependency: cryptography is not installed.
    """
    forms = require("cryptography.hazmat.primitives.serialization", extra=_EXTRA)
    ed25519 = require("cryptography.hazmat.primitives.asymmetric.ed25519", extra=_EXTRA)
    try:
        with reading(path, _MAX_BYTES) as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(_MAX_BYTES)
    except OSError as error:
        raise UsageError(f"cannot read the private key {path}: {error.strerror}") from None
    if mode & 0o077:
        raise UsageError(
            f"others can read the private key {path} (mode {mode:o}); make another one, or, if "
            f"nobody has read it, run: chmod 600 {quote(str(path))}"
        )
    # What the library says of a wrong file may quote it, so it is not passed on.
    wanted = f"{path} is no private Ed25519 key (PEM); make one with: lgvit-edge bundle keys FILE"
    secret = None
    if b"ENCRYPTED" in content:
        secret = passphrase()
        wanted = f"the passphrase is not that of {path}, or the file is damaged"
    try:
        key = forms.load_pem_private_key(content, secret)
    except (ValueError, TypeError, _unsupported()):
        raise UsageError(wanted) from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise UsageError(wanted)
    return PrivateKey(key)


def read_trusted(sources: Iterable[KeySource]) -> tuple[PublicKey, ...]:
    """Return the public keys that a device trusts.

    Args:
        sources: files of PEM, each of one key or several; or, as ``bytes``, PEM or a key itself.

    Raises:
        UsageError: it is no list, or an empty one, or one of them is no public Ed25519 key.
        MissingDependency: cryptography is not installed.
    """
    if isinstance(sources, (str, bytes, os.PathLike)) or not isinstance(sources, Iterable):
        raise UsageError(
            f"trusted keys must be a list, such as ['fleet.key.pub'], found {sources!r}"
        )
    keys = [key for source in sources for key in _read_public(source)]
    if not keys:
        raise UsageError("expected at least one trusted key, found none: that would trust nobody")
    return tuple(dict.fromkeys(keys))


def _read_public(source: KeySource) -> list[PublicKey]:
    if isinstance(source, bytes) and len(source) == _RAW:
        return [PublicKey(source)]
    if isinstance(source, bytes):
        what, content = "the trusted key", source
    elif isinstance(source, (str, os.PathLike)):
        what = f"the trusted key {os.fspath(source)}"
        try:
            with reading(source, _MAX_BYTES) as file:
                content = file.read(_MAX_BYTES)
        except OSError as error:
            raise UsageError(f"cannot read {what}: {error.strerror}") from None
    else:
        raise UsageError(f"a trusted key must be a file's path or bytes, found {type(source)}")
    if b"PRIVATE KEY" in content:
        raise UsageError(
            f"{what} is a private key, which belongs on no device: expected its public half, the "
            "file that ends in .pub"
        )
    forms = require("cryptography.hazmat.primitives.serialization", extra=_EXTRA)
    ed25519 = require("cryptography.hazmat.primitives.asymmetric.ed25519", extra=_EXTRA)
    blocks = _PUBLIC.findall(content)
    if not blocks or len(blocks) != content.count(b"-----BEGIN"):
        raise UsageError(f"{what} holds no public keys: expected PEM, -----BEGIN PUBLIC KEY-----")
    found = []
    for block in blocks:
        try:
            key = forms.load_pem_public_key(block)
        except (ValueError, _unsupported()) as error:
            raise UsageError(f"{what} cannot be read: {in_one_line(error)}") from None
        if not isinstance(key, ed25519.Ed25519PublicKey):
            raise UsageError(f"{what} is of another kind: expected Ed25519")
        found.append(PublicKey(key.public_bytes_raw()))
    return found


def _unsupported() -> type[Exception]:
    """Return what is raised of keys of unknown kinds."""
    kind: type[Exception] = require("cryptography.exceptions", extra=_EXTRA).UnsupportedAlgorithm
    return kind
