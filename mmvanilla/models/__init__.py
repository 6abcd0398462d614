from ..registry import MODELS, register_lazily
from .deep_conv import DeepConv
from .official import convert_official_state_dict
from .reparameterize import merge_deep_convs, set_deep_training_lambda, switch_to_deploy
from .series_activation import SeriesActivation
from .techniques import add_deep_training, add_series_activation
from .vanillanet import VanillaNet

__all__ = [
    'DeepConv',
    'SeriesActivation',
    'VanillaNet',
    'add_deep_training',
    'add_series_activation',
    'convert_official_state_dict',
    'merge_deep_convs',
    'set_deep_training_lambda',
    'switch_to_deploy',
]

register_lazily(MODELS, 'VanillaNetClsHead', 'mmvanilla.models.cls_head')  # needs mmpretrain
