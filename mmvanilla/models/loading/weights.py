"""Weights from files into networks. The layers themselves meet the form of their weights."""

import re
from typing import Any, Dict, Iterator, Optional

from mmengine.logging import print_log
from mmengine.model.weight_init import PretrainedInit
from torch import Tensor, nn

from ...checkpoint import load_checkpoint
from ..folding.arithmetic import part, take
from ..folding.foldable import complain, match
from .names import own_names
from .official import is_official_state_dict


def take_classifier_weights(
    backbone: nn.Module, state_dict: Dict[str, Tensor], prefix: str
) -> None:
    """Brings weights of a classifier to its names, in place, and compares them with its backbone.

    Args:
        backbone: Of the classifier.
        state_dict: The weights.
        prefix: What the keys of the classifier begin with.

    Raises:
        UsageError: if there are weights of a backbone, and not all of this one.
    """
    weights = take(state_dict, prefix)
    own = own_names(weights)
    given = part(own, 'backbone.')
    if given:
        complain(match(backbone, own_names(given, backbone))[1], 'the backbone')
    if not is_official_state_dict(weights):  # its parts rename what is in them
        own = {re.sub(r'^((module|_orig_mod)\.)+', '', k): v for k, v in weights.items()}
    state_dict.update({prefix + name: value for name, value in own.items()})


def read_state_dict(checkpoint: str) -> Dict[str, Tensor]:
    """The weights in a checkpoint, in this package's names (of an authors' file the EMA weights).

    Args:
        checkpoint: Path or address.

    Raises:
        UsageError: if the file is absent, unreadable or unsafe.
    """
    return own_names(load_checkpoint(checkpoint))


def load_weights(
    network: nn.Module, weights: Dict[str, Tensor], path: str, strict: bool = False
) -> None:
    """Loads weights in any form into a network in any form; all of the network must be there.

    Args:
        network: Any network.
        weights: As ``read_state_dict`` gives them.
        path: The file that they are from.
        strict: Whether keys that the network does not have are refused, or only logged.

    Raises:
        UsageError: naming the file and what does not fit. Nothing is loaded then.
    """
    weights, mismatches = match(network, own_names(weights, network))
    unexpected = [] if strict else mismatches.pop('unexpected')
    complain(mismatches, type(network).__name__, path)
    network.load_state_dict(weights, strict=False)
    if unexpected:
        print_log(f'Keys that the model does not have: {unexpected}', 'current')


def pretrained_cfgs(init_cfg: Any) -> Iterator[dict]:
    """Those of a module's ``init_cfg`` (a dict, a list of dicts or None) that name a checkpoint."""
    for cfg in [init_cfg] if isinstance(init_cfg, dict) else init_cfg or []:
        if cfg.get('type') in ('Pretrained', PretrainedInit):
            yield cfg


def load_pretrained(
    backbone: nn.Module,
    checkpoint: str,
    prefix: Optional[str] = None,
    layers: Optional[Dict[str, str]] = None,
) -> None:
    """Loads the backbone's weights out of a checkpoint; every key must match.

    Args:
        backbone: A VanillaNet.
        checkpoint: Path or address of a checkpoint of the authors (EMA weights are preferred), of a
            model that holds the backbone, or of a backbone alone, in any form.
        prefix: What the backbone's keys begin with; 'backbone.' if there are such keys.
        layers: For the checkpoint of a shallower network, the layer of the backbone that each of
            its layers goes to ('blocks.6' to 'blocks.7'); the other layers stay as they are.

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
        mapped = ' as source_arch says (None: it is of the same arch)'
        needed = set(layers.values())
        mismatches['missing'] = [key for key in mismatches['missing'] if _layer(key) in needed]
    complain(mismatches, f'the backbone{mapped}', checkpoint)
    backbone.load_state_dict(weights, strict=False)


def _layer(key: str) -> str:
    """'blocks.3.conv.norm.bias' -> 'blocks.3', 'stem.conv.norm.bias' -> 'stem'."""
    return re.match(r'(blocks\.\d+|\w+)', key)[0]


def _rename_layers(weights: Dict[str, Tensor], layers: Dict[str, str]) -> Dict[str, Tensor]:
    renamed = {}
    for key, value in weights.items():
        layer = _layer(key)
        # A layer that is not in the table keeps a name that is nobody's, and is reported.
        renamed[layers.get(layer, f'checkpoint.{layer}') + key[len(layer) :]] = value
    return renamed
