"""Checks of an exported chain: does it compute and decide as the PyTorch model does?"""
