"""Model configurations, published sizes, heads and exit placement, without PyTorch."""
