"""What is worked out once per bundle and machine, and kept in the user's own cache folder.

Compiled models are native code, so they live where only the user writes, never in a bundle.
All of it may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from lgvit_edge._support.files import replacing


def cache_root() -> Path | None:
    """``LGVIT_EDGE_CACHE``, else ``lgvit-edge`` in the user's cache folder; None: keep nothing.

    None where ``LGVIT_EDGE_CACHE`` is empty or there is no home.
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
    """Folder of one bundle, by its manifest's ``identity``; None: keep nothing."""
    root = cache_root()
    return None if root is None else root / identity[:24]


def key_of(*parts: object) -> str:
    """A short name for a combination of versions, processor and settings."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def ours(path: Path) -> bool:
    """Whether a cached file is there and another user cannot have written it."""
    try:
        found = path.stat()
    except OSError:
        return False
    return not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o022)


def keep(path: Path, write: Callable[[Path], object]) -> bool:
    """Write a cached file whole or not at all; without room or permission it is not kept.

    Returns:
        Whether it was kept.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with replacing(path) as partial:
            write(partial)
            partial.chmod(0o600)
        return True
    except OSError:
        return False
