"""Fused networks: files of them, ONNX, and fast inference."""
