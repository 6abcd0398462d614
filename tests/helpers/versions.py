"""Versions of the packages that are installed."""

from packaging.version import Version
from torch import __version__

TORCH = Version(Version(__version__).base_version)


def torch_has(version):
    """Whether torch is at least as new as ``version``."""
    return Version(version) <= TORCH
