"""The backends that run segments: ONNX Runtime, OpenVINO, TensorRT."""
