"""Takes out of a report's texts what names a person, a machine or a place on it."""

from __future__ import annotations

import contextlib
import getpass
import html
import os
import re
import socket
import sys
from pathlib import Path

import lgvit_edge

# Users of devices as they are delivered; as words they are everywhere.
_COMMON = {"root", "user", "ubuntu", "nvidia", "jetson", "debian", "admin", "home", "localhost"}
# Homes, and disks that are named by people, of whomever.
_HOMES = re.compile(r"(?<![\w.])(/home|/Users|/media|/mnt)/[^/\s\"'<>:,;&)]+")


def secrets(**places: Path) -> dict[str, str]:
    """Return what must not be in a report, and what stands there instead.

    ``places`` are further folders, by the word that replaces them.
    """
    folders = {
        "PACKAGES": Path(lgvit_edge.__file__).resolve().parents[1],
        "ENVIRONMENT": Path(sys.prefix),
        "HOME": Path.home(),
        **places,
    }
    found: dict[str, str] = {}
    for word, folder in folders.items():
        # Never as it was typed: the folder "out" would be taken out of every sentence.
        found |= {str(folder.absolute()): word, str(folder.resolve()): word}
    host = socket.gethostname()
    found |= {host: "MACHINE", host.partition(".")[0]: "MACHINE"}
    with contextlib.suppress(OSError, KeyError):  # a container without a name for the user
        found[getpass.getuser()] = "USER"
    found[os.environ.get("SUDO_USER", "")] = "USER"
    return {text: word for text, word in found.items() if _tells(text)}


def without(text: str, found: dict[str, str]) -> str:
    """Return a text with every secret replaced, also as HTML writes it, and other homes."""
    for secret in sorted(found, key=len, reverse=True):  # folders before those that hold them
        for written in {secret, html.escape(secret)}:
            pattern, flags = rf"(?<![\w.]){re.escape(written)}(?![\w-])", 0
            if "/" not in secret:  # a name, perhaps with a domain after it
                pattern, flags = pattern.replace("(?![", r"(?:\.\w[\w-]*)*(?![", 1), re.IGNORECASE
            text = re.sub(pattern, found[secret], text, flags=flags)  # which has no backslash
    return _HOMES.sub(r"\1/NAME", text)


def _tells(text: str) -> bool:
    return len(text) > 2 and text.lower() not in _COMMON
