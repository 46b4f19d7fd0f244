"""Takes out of a report's texts what names a person, a machine or a place on it."""

from __future__ import annotations

import getpass
import html
import json
import re
import socket
import sys
from pathlib import Path

import lgvit_edge

# Users of devices as they are delivered; as words they are everywhere.
_COMMON = {"root", "user", "ubuntu", "nvidia", "jetson", "debian", "pi", "admin", "home"}


def secrets(**places: Path) -> dict[str, str]:
    """Return what must not be in a report, and what stands there instead.

    ``places`` are further folders, by the word that replaces them.
    """
    found = {str(path): name for name, path in places.items()}
    found |= {str(path.resolve()): name for name, path in places.items()}
    found[str(Path(lgvit_edge.__file__).resolve().parents[1])] = "PACKAGES"
    found[sys.prefix] = "ENVIRONMENT"
    found[str(Path.home())] = "HOME"
    found[socket.gethostname()] = "MACHINE"
    try:
        found[getpass.getuser()] = "USER"
    except (OSError, KeyError):  # a container without a name for the user
        pass
    return {text: word for text, word in found.items() if _tells(text)}


def without(text: str, found: dict[str, str]) -> str:
    """Return a text with every secret replaced, also as JSON and HTML write it."""
    for secret in sorted(found, key=len, reverse=True):  # folders before those that hold them
        word = found[secret]
        for written in {secret, json.dumps(secret)[1:-1], html.escape(secret)}:
            pattern = re.escape(written)
            if "/" not in secret:  # a name: as a word of its own alone
                pattern = rf"(?<![\w.-]){pattern}(?![\w-])"
            text = re.sub(pattern, word, text)  # the words have no backslash
    return text


def _tells(text: str) -> bool:
    return len(text) > 2 and text.lower() not in _COMMON | {"localhost"} and text != "/"
