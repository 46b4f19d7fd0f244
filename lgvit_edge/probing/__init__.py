"""Probes a model on images: which exit sees what and where it looks, and what going on is worth."""
