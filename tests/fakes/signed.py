"""Bundles that are signed, in folders that nobody else can write."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from lgvit_edge.bundle.keys import PrivateKey, make_keys, read_private_key
from lgvit_edge.bundle.signing import sign_bundle


@dataclass(frozen=True)
class Pair:
    """A key pair without a passphrase: the files, and the private key."""

    file: Path
    public: Path
    key: PrivateKey


def key_pair(file: Path) -> Pair:
    make_keys(file, None)
    return Pair(file, file.with_name(f"{file.name}.pub"), read_private_key(file, lambda: b""))


def own_copy(bundle: Path, place: Path) -> Path:
    """A copy that nobody else can write, whatever the umask is."""
    copy = Path(shutil.copytree(bundle, place))
    for path in (copy, *copy.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o022)
    return copy


def signed_copy(bundle: Path, place: Path, pair: Pair) -> Path:
    copy = own_copy(bundle, place)
    sign_bundle(copy, pair.key)
    return copy
