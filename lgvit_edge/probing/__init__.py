"""Probes a model on images: how good each exit is, what its stages resemble, where exits look."""
