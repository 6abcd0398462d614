"""VanillaNet for OpenMMLab: a backbone of a few 1x1 convolutions, no shortcuts, no attention."""

from typing import Any, List

from .supported_versions import check_versions

check_versions()

from . import engine, evaluation  # noqa: E402, F401  to register what configs name
from .deployment.optimized_inference import optimize_for_inference  # noqa: E402
from .errors import UsageError  # noqa: E402
from .model_index import register_when_imported  # noqa: E402
from .models import (  # noqa: E402
    SeriesActivation,
    VanillaNet,
    add_deep_training,
    add_series_activation,
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
    'add_deep_training',
    'add_series_activation',
    'convert_official_state_dict',
    'merge_deep_convs',
    'optimize_for_inference',
    'set_deep_training_lambda',
    'switch_to_deploy',
]

register_when_imported()


def __dir__() -> List[str]:
    return [*globals(), 'VanillaNetClsHead']


def __getattr__(name: str) -> Any:
    """Imports the head on demand: mmpretrain may be absent, and is slow to import."""
    if name == 'VanillaNetClsHead':
        from .models.cls_head import VanillaNetClsHead

        return VanillaNetClsHead
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
