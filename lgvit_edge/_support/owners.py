"""Tells who beside this user can change a file, or put another in its place."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path


def in_other_hands(root: Path, names: Iterable[str]) -> str:
    """Say which place lets others than this user and root change files below ``root``.

    Looked at are the files, the folders that they lie in, and all folders above: who may write to
    one of those may put another bundle there. Returns an empty string where nobody else can, and
    on systems without owners. ``root`` must be free of links.
    """
    if not hasattr(os, "geteuid"):
        return ""
    files = [root / name for name in names]
    inside = {folder for file in files for folder in file.parents if folder.is_relative_to(root)}
    for place in (*root.parents, *sorted(inside | {root}), *files):
        about = os.lstat(place)
        if about.st_uid not in (0, os.geteuid()):
            return f"{place} belongs to another user (number {about.st_uid})"
        # In a sticky folder, such as /tmp, nobody renames what is not his.
        shared = place in root.parents and about.st_mode & stat.S_ISVTX
        if about.st_mode & 0o022 and not shared:
            return f"{place} can be written by others (mode {stat.S_IMODE(about.st_mode):o})"
    return ""
