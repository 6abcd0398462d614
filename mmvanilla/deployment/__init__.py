"""Fused networks: their checkpoints, and fast inference."""
