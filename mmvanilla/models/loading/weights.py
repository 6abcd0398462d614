"""Loads files into networks. The layers themselves adapt to the form of their weights."""

import re
from typing import Any, Dict, Iterator, List, Optional, Union

from mmengine.logging import print_log
from mmengine.model.weight_init import PretrainedInit
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import Tensor, nn

from ...checkpoint import load_checkpoint
from ...config import class_of
from ...errors import UsageError
from ..folding.arithmetic import part, take
from ..folding.foldable import complain, match
from .names import own_names
from .official import is_official_state_dict


def take_classifier_weights(
    backbone: nn.Module, state_dict: Dict[str, Tensor], prefix: str
) -> None:
    """Renames a classifier's weights, in place, and checks that the backbone's fit the backbone.

    Args:
        backbone: The classifier's backbone.
        state_dict: The weights.
        prefix: The prefix of the classifier's keys.

    Raises:
        UsageError: if there are weights of a backbone, but not of this one.
    """
    weights = take(state_dict, prefix)
    own = own_names(weights)
    given = part(own, 'backbone.')
    if given:
        complain(match(backbone, own_names(given, backbone))[1], 'the backbone')
    if not is_official_state_dict(weights):  # the backbone and the head rename their own keys
        own = {re.sub(r'^((module|_orig_mod)\.)+', '', k): v for k, v in weights.items()}
    state_dict.update({prefix + name: value for name, value in own.items()})


def read_state_dict(checkpoint: str) -> Dict[str, Tensor]:
    """The weights in a checkpoint, under our names; the EMA weights of an authors' file.

    Args:
        checkpoint: Path or address.

    Raises:
        UsageError: if the file is absent, unreadable or unsafe.
    """
    return own_names(load_checkpoint(checkpoint))


def load_weights(
    network: nn.Module, weights: Dict[str, Tensor], path: str, strict: bool = False
) -> None:
    """Loads weights in any form into a network in any form; none may be missing.

    Args:
        network: Any network.
        weights: Weights as ``read_state_dict`` returns them.
        path: The file that they are from.
        strict: Whether keys that the network lacks are refused, or only logged.

    Raises:
        UsageError: naming the file and what does not fit. Then nothing is loaded.
    """
    weights, mismatches = match(network, own_names(weights, network))
    unexpected = [] if strict else mismatches.pop('unexpected')
    complain(mismatches, type(network).__name__, path)
    network.load_state_dict(weights, strict=False)
    if unexpected:
        print_log(f'Keys that the model lacks: {unexpected}', 'current')


def pretrained_cfgs(init_cfg: Any) -> Iterator[dict]:
    """The parts of an ``init_cfg`` (a dict, a list of dicts or None) that load a checkpoint."""
    for cfg in [init_cfg] if isinstance(init_cfg, dict) else init_cfg or []:
        if 'checkpoint' in cfg and class_of(cfg, registry=WEIGHT_INITIALIZERS) is PretrainedInit:
            yield cfg


def with_pretrained(
    init_cfg: Union[dict, List[dict], None], pretrained: Optional[str]
) -> Union[dict, List[dict], None]:
    """An ``init_cfg`` from both ways in which a config names pre-trained weights.

    Raises:
        UsageError: if both do, or if ``pretrained`` is what another backbone's config left.
    """
    if pretrained is None:
        return init_cfg
    if pretrained.startswith(('open-mmlab://', 'torchvision://')):
        raise UsageError(
            f'pretrained={pretrained!r} names the weights of another backbone: set pretrained=None '
            "in the model, as mmseg's base configs set it there."
        )
    if init_cfg is not None:
        raise UsageError('both pretrained and init_cfg name weights: set pretrained=None.')
    return dict(type='Pretrained', checkpoint=pretrained)


def load_pretrained(
    backbone: nn.Module,
    checkpoint: str,
    prefix: Optional[str] = None,
    layers: Optional[Dict[str, str]] = None,
) -> None:
    """Loads a backbone's weights from a checkpoint; every key must match.

    Args:
        backbone: A VanillaNet.
        checkpoint: Path or address of a checkpoint of the authors (EMA weights are preferred), of a
            model that contains the backbone, or of a backbone alone, in any form.
        prefix: The prefix of the backbone's keys; 'backbone.' if there are such keys.
        layers: For the checkpoint of a shallower network: maps each of its layers to one of the
            backbone's ('blocks.6' to 'blocks.7'); the other layers stay as they are.

    Raises:
        UsageError: naming the file and the series number, λ or keys that do not fit.
    """
    weights = read_state_dict(checkpoint)
    if prefix is None and any(key.startswith('backbone.') for key in weights):
        prefix = 'backbone.'
    if prefix:
        prefix = prefix.rstrip('.') + '.'
        weights = take(weights, prefix)
    if layers is not None:
        weights = _rename_layers(weights, layers)
    weights, mismatches = match(backbone, weights)
    mapped = ''
    if layers is not None:
        mapped = ' with its source_arch (set it to None for weights of the same arch)'
        needed = set(layers.values())
        mismatches['missing'] = [key for key in mismatches['missing'] if _layer(key) in needed]
        own = backbone.state_dict()  # the other layers keep theirs
        weights = {**{k: v for k, v in own.items() if _layer(k) not in needed}, **weights}
    complain(mismatches, f'the backbone{mapped}', checkpoint)
    backbone.load_state_dict(weights, strict=False)


def _layer(key: str) -> str:
    """The layer of a key, such as 'blocks.3' of 'blocks.3.conv.norm.bias'."""
    return re.match(r'(blocks\.\d+|\w+)', key)[0]


def _rename_layers(weights: Dict[str, Tensor], layers: Dict[str, str]) -> Dict[str, Tensor]:
    renamed = {}
    for key, value in weights.items():
        layer = _layer(key)
        # A layer that is not in the table gets a name that no layer has, and is reported.
        renamed[layers.get(layer, f'checkpoint.{layer}') + key[len(layer) :]] = value
    return renamed
