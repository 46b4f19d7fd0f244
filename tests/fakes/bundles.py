"""What a stranger does to a bundle: changes files, and lists them as they are now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lgvit_edge.bundle.plain_files import sha256


def list_again(root: Path) -> None:
    """Write the hashes and sizes of the files as they are now into the manifest."""
    path = root / "manifest.json"

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if {"file", "sha256", "bytes"} <= value.keys() and (root / value["file"]).is_file():
                file = root / value["file"]
                value |= {"sha256": sha256(file), "bytes": file.stat().st_size}
        for item in value.values() if isinstance(value, dict) else value:
            if isinstance(item, (dict, list)):
                walk(item)

    manifest = json.loads(path.read_text())
    walk(manifest)
    path.write_text(json.dumps(manifest))
