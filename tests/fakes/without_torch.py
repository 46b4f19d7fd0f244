"""A plugin of pytest for machines without torch: what imports it skips, be it a file or a test.

``pytest -p without_torch``; programs that tests start are left alone. ``tools/arm64.py`` uses it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder

import pytest


class NoTorch(MetaPathFinder):
    """Finds nothing, and skips where torch is looked for."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> None:
        if name == "torch":
            pytest.skip("needs torch, which is not here", allow_module_level=True)


sys.meta_path.insert(0, NoTorch())
