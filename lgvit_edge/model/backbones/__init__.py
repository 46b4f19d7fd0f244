"""Backbones: ViT, DeiT, Swin and Swin V2."""
