"""Measures and hashes files of a bundle, which a stranger may have made: only plain files."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

from lgvit_edge._support.files import reading


def size_of(path: Path) -> int:
    """Return the bytes of a plain file, which is not opened.

    Raises:
        OSError: there is no such file, or it is a folder, a pipe or a device.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no plain file")
    return found.st_size


def is_tar(path: Path) -> bool:
    """Return whether a file begins as a tar archive does."""
    try:
        with reading(path) as file:
            return file.read(512)[257:262] == b"ustar"
    except OSError:
        return False


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    digest = hashlib.sha256()
    with reading(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
