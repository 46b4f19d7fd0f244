"""From ONNX graphs to TensorRT engines. Nothing here imports torch: this also runs on devices."""
