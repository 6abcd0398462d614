"""Versions of the packages that are installed."""

import pytest
from packaging.version import Version
from torch import __version__

TORCH = Version(Version(__version__).base_version)


def torch_has(version):
    """Whether torch is at least as new as ``version``."""
    return Version(version) <= TORCH


def needs_torch(version, what):
    """Marks a test of something that older versions lack."""
    return pytest.mark.skipif(not torch_has(version), reason=f'{what} is new in torch {version}')
