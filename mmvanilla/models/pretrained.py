"""Strict loading of pre-trained backbone weights, with errors that name what does not fit."""

import re
from typing import Any, Dict, Iterator, List, Optional

from mmengine.model.weight_init import PretrainedInit
from torch import Tensor, nn

from ..checkpoint import get_state_dict, load_checkpoint
from ..errors import UsageError
from .guarded_loading import GuardedModule
from .official import convert_official_state_dict, is_official_state_dict
from .reparameterize import merge_weights


def pretrained_cfgs(init_cfg: Any) -> Iterator[dict]:
    """Those of a module's ``init_cfg`` (a dict, a list of dicts or None) that name a checkpoint."""
    for cfg in [init_cfg] if isinstance(init_cfg, dict) else init_cfg or []:
        if cfg.get('type') in ('Pretrained', PretrainedInit):
            yield cfg


def read_state_dict(
    checkpoint: str, map_location: str = 'cpu', mmap: bool = False
) -> Dict[str, Tensor]:
    """The weights in a checkpoint, an authors' file in this package's names (EMA preferred).

    Args:
        checkpoint: Path or address.
        map_location: As in ``torch.load``.
        mmap: Whether to leave the tensors in the file until they are used.

    Raises:
        UsageError: if the file is absent, unreadable or unsafe.
    """
    state_dict = get_state_dict(load_checkpoint(checkpoint, map_location, mmap))
    if is_official_state_dict(state_dict):
        state_dict = convert_official_state_dict(state_dict)
    return state_dict


def load_pretrained(
    backbone: nn.Module,
    checkpoint: str,
    prefix: Optional[str] = None,
    map_location: str = 'cpu',
    layers: Optional[Dict[str, str]] = None,
) -> None:
    """Loads the backbone's weights out of a checkpoint; every key must match.

    Args:
        backbone: A VanillaNet.
        checkpoint: Path or address of a checkpoint of the authors (EMA weights are preferred), of a
            model that holds the backbone, or of a backbone alone.
        prefix: What the backbone's keys begin with; 'backbone.' if there are such keys.
        map_location: As in ``torch.load``.
        layers: For the checkpoint of a shallower network, the layer of the backbone that each of
            its layers goes to ('blocks.6' to 'blocks.7'); the other layers stay as they are.

    Raises:
        UsageError: naming the file and the series number, form or keys that do not fit.
    """
    state_dict = read_state_dict(checkpoint, map_location)
    if prefix is None and any(key.startswith('backbone.') for key in state_dict):
        prefix = 'backbone.'
    if prefix:
        prefix = prefix.rstrip('.') + '.'
        state_dict = {
            k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)
        }
    expected = backbone.state_dict()
    if layers is not None:
        state_dict = _rename_layers(state_dict, layers)
    state_dict = merge_weights(backbone, state_dict)
    if layers is not None:
        expected = {k: v for k, v in expected.items() if _layer(k) in layers.values()}
    problem = find_mismatch(backbone, state_dict, expected)
    if problem:
        mapped = '' if layers is None else ' as source_arch says (None: it is of the same arch)'
        raise UsageError(f'checkpoint {checkpoint} does not fit the backbone{mapped}: {problem}')
    backbone.load_state_dict(state_dict, strict=layers is None)


def _layer(key: str) -> str:
    """'blocks.3.conv.norm.bias' -> 'blocks.3', 'stem.conv.norm.bias' -> 'stem'."""
    return re.match(r'(blocks\.\d+|\w+)', key)[0]


def _rename_layers(state_dict: Dict[str, Tensor], layers: Dict[str, str]) -> Dict[str, Tensor]:
    renamed = {}
    for key, value in state_dict.items():
        layer = _layer(key)
        # A layer that is not in the table keeps a name that is nobody's, and is reported.
        renamed[layers.get(layer, f'checkpoint.{layer}') + key[len(layer) :]] = value
    return renamed


def find_mismatch(
    network: nn.Module, given: Dict[str, Tensor], expected: Optional[Dict[str, Tensor]] = None
) -> Optional[str]:
    """Why weights do not fit a network, None if they do; part of a sentence.

    Args:
        network: A module.
        given: The weights.
        expected: The part of the network's state dict that they must fill; all of it by default.
    """
    for name, module in network.named_modules():
        if isinstance(module, GuardedModule):
            problem = module.explain_mismatch(given, f'{name}.')
            if problem:
                return problem
    problems = list_mismatches(given, network.state_dict() if expected is None else expected)
    found = [f'{what}: {_first(keys)}' for what, keys in problems.items() if keys]
    return '; '.join(found) + '.' if found else None


def list_mismatches(given: Dict[str, Tensor], expected: Dict[str, Tensor]) -> Dict[str, List[str]]:
    """Keys of a state dict that are missing, unexpected or of another shape."""
    return {
        'missing': sorted(expected.keys() - given.keys()),
        'unexpected': sorted(given.keys() - expected.keys()),
        'of another shape': [
            f'{key} {tuple(given[key].shape)} instead of {tuple(value.shape)}'
            for key, value in expected.items()
            if key in given and given[key].shape != value.shape
        ],
    }


def _first(keys: List[str], count: int = 4) -> str:
    return ', '.join(keys[:count]) + (f' and {len(keys) - count} more' if len(keys) > count else '')
