"""Backbones: ViT, DeiT and Swin."""
