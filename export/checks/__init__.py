"""Checks that an exported chain computes and decides as the PyTorch model does."""
