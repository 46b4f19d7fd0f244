"""Signs a bundle, and lists what is signed or packed of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from lgvit_edge._support.files import locked
from lgvit_edge._support.outputs import write
from lgvit_edge.bundle.directory import Bundle, check_writable, describe, open_bundle
from lgvit_edge.bundle.keys import PrivateKey, PublicKey
from lgvit_edge.bundle.layout import ENGINES, LOCK, MANIFEST, SIGNATURE
from lgvit_edge.bundle.manifest import FileSpec
from lgvit_edge.bundle.signature import (
    SIGNATURE_SCHEMA,
    Signature,
    check_signed_files,
    files_in,
    message,
    read_signature,
    trusted_signature,
)
from lgvit_edge.errors import BundleError


def sign_bundle(
    root: str | Path, key: PrivateKey, *, trusted_keys: Sequence[PublicKey] | None = None
) -> Signature:
    """Sign a bundle exactly as it is, engines included; an older signature is replaced.

    Args:
        root: the bundle's folder.
        key: the signer's.
        trusted_keys: one of these must have signed the bundle before, since when only engines may
            have been added: so a device vouches for what it compiled, and for nothing else.

    Raises:
        BundleError: it is damaged, holds what belongs to no bundle, cannot be written, or was not
            signed before as it should be.
    """
    open_bundle(root, verify=False)  # says best what is wrong, before anything is written
    check_writable(Path(root))
    try:
        with locked(Path(root) / LOCK, wait=f"changes {root}"):
            bundle = open_bundle(root)
            if trusted_keys is not None:
                before = trusted_signature(bundle.root, trusted_keys)
                check_signed_files(bundle.root, bundle.manifest, before, more_engines=True)
            files = other_files(bundle)
            signed = key.sign(message(files)).hex()
            signature = Signature(SIGNATURE_SCHEMA, key.public.raw.hex(), files, signed)
            write(bundle.root / SIGNATURE, signature.dumps())
    except OSError as error:
        raise BundleError(f"cannot write {Path(root) / SIGNATURE}: {error.strerror}") from None
    return signature


def other_files(bundle: Bundle) -> tuple[FileSpec, ...]:
    """Return the files of a bundle that its manifest does not list, hashed, sorted by name.

    Raises:
        BundleError: one does not belong to a bundle, or has a name that cannot be listed.
    """
    listed = {spec.file for spec in bundle.manifest.files()} | {SIGNATURE}
    names = [name for name in files_in(bundle.root) if name not in listed]
    for name in names:
        parts = name.split("/")
        if name != MANIFEST and not (parts[0] == ENGINES and len(parts) == 3):
            raise BundleError(
                f"{bundle.root / name} does not belong to a bundle (an interrupted run may have "
                f"left it); remove it: rm {quote(str(bundle.root / name))}"
            )
    try:
        return tuple(describe(bundle.root, name) for name in names)
    except OSError as error:
        raise BundleError(f"cannot read {error.filename}: {error.strerror}") from None
    except ValueError as error:
        raise BundleError(f"{bundle.root} holds what cannot be listed: {error}") from None


def check_not_stale(bundle: Bundle) -> PublicKey | None:
    """Refuse a signature that no longer holds; return whose it is, None where there is none.

    Raises:
        BundleError: it is damaged, or the bundle was changed since.
    """
    if not (bundle.root / SIGNATURE).exists():
        return None
    signature = read_signature(bundle.root)
    check_signed_files(bundle.root, bundle.manifest, signature)
    return signature.signer
