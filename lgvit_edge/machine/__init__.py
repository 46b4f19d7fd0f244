"""What this machine has: processor, GPU, Jetson board, TensorRT."""
