"""Hooks of a Runner."""
