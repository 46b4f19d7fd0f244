"""CUDA as the TensorRT backend needs it, through pycuda or cuda-python."""
