"""Helpers that the whole package uses: files, the cache, optional packages, the terminal."""
