"""Strict loading of pre-trained backbone weights, with errors that name what does not fit."""

from typing import Any, Dict, Iterator, List, Optional

from mmengine.model.weight_init import PretrainedInit
from torch import Tensor, nn

from ..checkpoint import get_state_dict, load_checkpoint
from ..errors import UsageError
from .official import convert_official_state_dict, is_official_state_dict


def pretrained_cfgs(init_cfg: Any) -> Iterator[dict]:
    """Those of a module's ``init_cfg`` (a dict, a list of dicts or None) that name a checkpoint."""
    for cfg in [init_cfg] if isinstance(init_cfg, dict) else init_cfg or []:
        if cfg.get('type') in ('Pretrained', PretrainedInit):
            yield cfg


def load_pretrained(
    backbone: nn.Module, checkpoint: str, prefix: Optional[str] = None, map_location: str = 'cpu'
) -> None:
    """Loads the backbone's weights out of a checkpoint; every key must match.

    Args:
        backbone: A VanillaNet.
        checkpoint: Path or address of a checkpoint of the authors (EMA weights are preferred), of a
            model that holds the backbone, or of a backbone alone.
        prefix: What the backbone's keys begin with; 'backbone.' if there are such keys.
        map_location: As in ``torch.load``.

    Raises:
        UsageError: naming the file and the series number, form or keys that do not fit.
    """
    state_dict = get_state_dict(load_checkpoint(checkpoint, map_location))
    if is_official_state_dict(state_dict):
        state_dict = convert_official_state_dict(state_dict)
    if prefix is None and any(key.startswith('backbone.') for key in state_dict):
        prefix = 'backbone.'
    if prefix:
        prefix = prefix.rstrip('.') + '.'
        state_dict = {
            k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)
        }
    problem = _mismatch(state_dict, backbone.state_dict(), backbone.act_num)
    if problem:
        raise UsageError(f'checkpoint {checkpoint} does not fit the backbone: {problem}')
    backbone.load_state_dict(state_dict)


def _mismatch(given: Dict[str, Tensor], expected: Dict[str, Tensor], act_num: int) -> Optional[str]:
    series = given.get('stem.act.conv.weight')
    if series is not None and series.shape[-1] != 2 * act_num + 1:
        size = series.shape[-1]
        return (
            f'its series number is {size // 2} ({size}x{size} kernels), the backbone has '
            f'act_num={act_num}; build it with act_num={size // 2}.'
        )
    fused = 'stem.conv.conv1.weight' in expected and 'stem.conv.conv.weight' in given
    if fused and 'stem.conv.norm.weight' not in given:
        return 'it is in deploy form; build the backbone with deploy=True, or use another file.'
    problems = list_mismatches(given, expected)
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
