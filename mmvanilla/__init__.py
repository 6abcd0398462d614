"""VanillaNet for OpenMMLab: a backbone of a few 1x1 convolutions, no shortcuts, no attention."""

from .compatibility import check_versions

check_versions()

from . import engine  # noqa: E402, F401  registers the hooks and the optimizer constructor
from .errors import UsageError  # noqa: E402
from .models import (  # noqa: E402
    SeriesActivation,
    VanillaNet,
    convert_official_state_dict,
    merge_deep_convs,
    set_deep_training_lambda,
    switch_to_deploy,
)
from .version import __version__  # noqa: E402

__all__ = [
    'SeriesActivation',
    'UsageError',
    'VanillaNet',
    '__version__',
    'convert_official_state_dict',
    'merge_deep_convs',
    'set_deep_training_lambda',
    'switch_to_deploy',
]
