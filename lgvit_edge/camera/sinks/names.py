"""Names of cameras and classes as parts of file names and topics, reversibly."""

from __future__ import annotations

import hashlib
import re

# What no file system takes, what steers a terminal or turns the reading direction, half characters,
# and what Unicode calls no characters, which brokers refuse.
_NEVER = r"%/\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef" + "".join(
    chr(plane + end) for plane in range(0, 0x110000, 0x10000) for end in (0xFFFE, 0xFFFF)
)
# A leading point hides a file. Lists of names are read without spaces at their ends.
_EDGES = r"^[.\s]|\s$"
IN_FILES = r'\\:*?"<>|'  # what disks of other systems do not take
IN_TOPICS = "+#"  # what has a meaning in topics of MQTT
LONGEST = 160  # bytes: file systems take 255


def as_name(text: str, also: str = "", longest: int = LONGEST) -> str:
    """Return text as one part of a file name or a topic; different texts stay different.

    What cannot stand there is written as in addresses, ``%2F`` for a slash, so that
    ``urllib.parse.unquote`` gives the text back. ``also`` holds more such characters. A text of
    more than ``longest`` bytes is cut, and ends with ``%~`` and a part of its hash.
    """
    if not text:
        return "%"
    name = re.sub(f"[{_NEVER}{re.escape(also)}]|{_EDGES}", _quoted, text)
    raw = name.encode()
    if len(raw) <= longest:
        return name
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return raw[:longest].decode("utf-8", "ignore") + "%~" + digest


def _quoted(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogatepass"))
