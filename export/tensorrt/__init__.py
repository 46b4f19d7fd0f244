"""Compiles ONNX graphs to TensorRT engines, without torch: this also runs on devices."""
