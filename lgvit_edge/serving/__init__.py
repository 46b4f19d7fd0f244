"""Serving on servers of others: a bundle as models of NVIDIA Triton; without PyTorch.

``repository`` writes what Triton reads. ``served`` runs inside Triton, in its Python backend;
docs/triton.md explains both. ``split`` runs on a device and lets such a server go on with images
that the device is unsure of; docs/upstream.md explains it. Names load when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lgvit_edge._support.lazy import lazily

if TYPE_CHECKING:
    from lgvit_edge.serving.split import SplitSession as SplitSession
    from lgvit_edge.serving.split import SplitStatistics as SplitStatistics
    from lgvit_edge.serving.upstream import Upstream as Upstream

_HOMES = {
    "lgvit_edge.serving.split": ("SplitSession", "SplitStatistics"),
    "lgvit_edge.serving.upstream": ("Upstream",),
}
__all__ = [name for names in _HOMES.values() for name in names]
__getattr__, __dir__ = lazily(__name__, _HOMES)
