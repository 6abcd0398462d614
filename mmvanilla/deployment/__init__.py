"""Fused networks: files of them, and fast inference."""
