"""Sinks: where answers go."""
