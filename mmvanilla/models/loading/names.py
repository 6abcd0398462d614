"""Names of weights: other programs' names are replaced by those of this package.

``rename_on_loading`` makes a network do this whenever its ``load_state_dict`` is called.
"""

import sys
from functools import partial
from typing import Any, Dict, Mapping, Optional

from torch import Tensor, nn

from ...checkpoint import get_state_dict
from ..folding.arithmetic import part, take
from ..folding.foldable import complain, match, named_foldables
from .official import convert_official_state_dict, is_official_state_dict


def own_names(weights: Mapping[str, Any], network: Optional[nn.Module] = None) -> Dict[str, Tensor]:
    """Weights under the names of this package.

    Prefixes of wrappers (DDP, compiled networks) are removed. The authors' weights get the names of
    an mmpretrain classifier.

    Args:
        weights: A state dict, or a checkpoint.
        network: The network that they are for, if parts of it may be compiled.
    """
    weights = get_state_dict(weights)
    if is_official_state_dict(weights):
        weights = convert_official_state_dict(weights)
    for name, _ in [] if network is None else network.named_modules():
        if name.endswith('_orig_mod'):
            parent = name[: -len('_orig_mod')]
            for key in [key for key in weights if key.startswith(parent)]:
                weights[f'{name}.{key[len(parent) :]}'] = weights.pop(key)
    return weights


def name_weights(checkpoint: Dict[str, Any], network: Optional[nn.Module] = None) -> None:
    """Gives a checkpoint the ``state_dict`` that mmengine reads, in place, under our names."""
    if 'state_dict' not in checkpoint or network is not None:
        weights = own_names(checkpoint, network)
        if checkpoint.get('state_dict', {}).keys() != weights.keys():
            checkpoint['state_dict'] = weights


def rename_on_loading(network: nn.Module, whole: bool = False) -> None:
    """Makes a network take weights under any names that ``own_names`` knows, in any program.

    Args:
        network: A backbone or head.
        whole: Whether to refuse weights for only a part of it.
    """
    hook = partial(_take_own_names, whole)
    network._register_load_state_dict_pre_hook(hook, with_module=True)


def _take_own_names(
    whole: bool, network: nn.Module, state_dict: Dict[str, Tensor], prefix: str, *args: Any
) -> None:
    if 'module' in network._modules:
        return
    weights = take(state_dict, prefix)
    is_official = is_official_state_dict(weights)
    weights = {
        name.replace('backbone.', '', int(is_official)): value
        for name, value in own_names(weights, network).items()
    }
    state_dict.update({prefix + name: value for name, value in weights.items()})
    if whole and weights and _loads_for_mmengine():
        check_whole(network, weights)


def _loads_for_mmengine() -> bool:
    """Whether mmengine loads the weights: it only logs what is missing, where torch returns it."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_globals['__name__'] != 'mmengine.runner.checkpoint':
        frame = frame.f_back
    return frame is not None


def check_whole(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raises UsageError unless there are weights of the right shapes for each layer of a network.

    Otherwise the network would go on with random weights. Folding is only tried, with meta
    tensors. What is wrong inside a layer, the layer itself says when it loads.
    """
    shapes = {
        name: value if name.endswith('_extra_state') else value.to('meta')
        for name, value in weights.items()
        if isinstance(value, Tensor)
    }
    mismatches = match(network, shapes)[1]
    given = tuple(prefix for prefix, _ in named_foldables(network) if part(weights, prefix))
    lost = [key for key in mismatches['missing'] if not key.startswith(given)]
    shapes = [each for each in mismatches['of another shape'] if '_extra_state' not in each]
    complain({'missing': lost, 'of another shape': shapes}, type(network).__name__)
