"""Serving on servers of others: a bundle as models of NVIDIA Triton; without PyTorch.

``repository`` writes what Triton reads. ``served`` runs inside Triton, in its Python backend.
docs/triton.md explains both.
"""
