"""The CUDA calls that the TensorRT backend needs, through pycuda or cuda-python."""
