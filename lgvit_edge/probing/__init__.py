"""Shows what the exits of a model see: probes of trained models, in PyTorch."""
