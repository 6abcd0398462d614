"""The network, best read in this order:

vanillanet.py         the block and the network
deep_conv.py          equation 1: a convolution that is trained as two
series_activation.py  equation 6: the activation
architecture.py       the released models
cls_head.py           the classifier
shortcut.py           the ablation of Table 3
retrofit.py           the two techniques for other networks
folding/              how the layers of training become one convolution
loading/              how weights of any form and name are loaded
efficiency/           what saves memory or time on some devices
"""

from ..registry import MODELS, register_lazily
from .deep_conv import DeepConv
from .folding.network import merge_deep_convs, set_deep_training_lambda, switch_to_deploy
from .loading.official import convert_official_state_dict
from .retrofit import add_deep_training, add_series_activation
from .series_activation import SeriesActivation
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
