"""Detection of this machine's hardware and libraries: processor, GPU, Jetson board, TensorRT."""
