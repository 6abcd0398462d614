"""Folding: layers that are several in training become one convolution."""
