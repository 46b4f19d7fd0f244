"""Serving on servers of others: a bundle as models of NVIDIA Triton; without PyTorch.

``repository`` writes what Triton reads. ``served`` runs inside Triton, in its Python backend;
docs/triton.md explains both. ``split`` runs on a device and lets such a server go on with images
that the device is unsure of; docs/upstream.md explains it.
"""

from lgvit_edge.serving.split import SplitSession, SplitStatistics
from lgvit_edge.serving.upstream import Upstream

__all__ = ["SplitSession", "SplitStatistics", "Upstream"]
