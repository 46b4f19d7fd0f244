"""A cache in the user's own folder for results that are computed once per bundle and machine.

Compiled models are native code, so they lie where only the user can write, never in a bundle.
The user may delete the whole cache at any time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from lgvit_edge._support.outputs import replacing


def cache_root() -> Path | None:
    """Return the cache folder: ``LGVIT_EDGE_CACHE``, or ``lgvit-edge`` in the user's cache folder.

    None, for no cache, where ``LGVIT_EDGE_CACHE`` is empty or the user has no home folder.
    """
    chosen = os.environ.get("LGVIT_EDGE_CACHE")
    if chosen is not None:
        return Path(chosen) if chosen else None
    from platformdirs import user_cache_path

    try:
        folder = user_cache_path("lgvit-edge")
    except RuntimeError:  # no home; older versions answer with a folder named "~"
        return None
    return folder if folder.is_absolute() else None


def bundle_cache(identity: str) -> Path | None:
    """Return the cache folder of the bundle with this ``identity``; None for no cache."""
    root = cache_root()
    return None if root is None else root / identity[:24]


def key_of(*parts: object) -> str:
    """Return a short hash of a combination of versions, processor and settings."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def ours(path: Path) -> bool:
    """Return whether a cached file exists and no other user can have written it."""
    try:
        stat = path.stat()
    except OSError:
        return False
    return not hasattr(os, "getuid") or (stat.st_uid == os.getuid() and not stat.st_mode & 0o022)


def keep(path: Path, write: Callable[[Path], object]) -> bool:
    """Return whether a cached file was written, whole or not at all; a full disk is no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with replacing(path) as partial:
            write(partial)
            partial.chmod(0o600)
        return True
    except OSError:
        return False
