"""Folders of images, however large: answered into one file, by one machine or several.

Names load when first used; docs/folders.md explains them. Nothing here needs PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lgvit_edge._support.lazy import lazily

if TYPE_CHECKING:
    from lgvit_edge.offline.run import Outcome as Outcome
    from lgvit_edge.offline.run import answer_images as answer_images

_HOMES = {"lgvit_edge.offline.run": ("Outcome", "answer_images")}
__all__ = [name for names in _HOMES.values() for name in names]
__getattr__, __dir__ = lazily(__name__, _HOMES)
