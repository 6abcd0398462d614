"""Folding: several layers of training become one convolution."""
