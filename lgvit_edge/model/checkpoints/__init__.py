"""Reads and writes trained models: our own files, the authors', Hugging Face's and timm's."""
