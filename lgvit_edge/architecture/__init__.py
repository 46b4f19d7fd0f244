"""What a model looks like, without PyTorch: its configuration, published sizes, where exits go."""
