"""Reads files of a bundle that a stranger may have made: only plain files, only up to a size.

A named pipe would wait for ever, and a file with holes of a terabyte be read for hours.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path


def size_of(path: Path) -> int:
    """Return the bytes of a plain file, which is not opened.

    Raises:
        OSError: there is no such file, or it is a folder, a pipe or a device.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no plain file")
    return found.st_size


def read_up_to(path: Path, limit: int) -> bytes:
    """Return a plain file's content, or its first ``limit`` + 1 bytes; raises as ``size_of``."""
    size_of(path)
    with path.open("rb") as file:
        return file.read(limit + 1)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
