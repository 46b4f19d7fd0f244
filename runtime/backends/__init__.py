"""What runs segments: ONNX Runtime, OpenVINO, TensorRT."""
