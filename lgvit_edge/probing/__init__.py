"""Probes a model on images: which exit sees what, what it resembles, and what going on is worth."""
