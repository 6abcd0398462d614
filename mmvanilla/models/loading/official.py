"""The authors' released checkpoints (https://github.com/huawei-noah/VanillaNet), key by key."""

import re
from typing import Dict, Mapping

import torch
from torch import Tensor

from ...errors import UsageError

# Names in the authors' code, and in an mmpretrain ImageClassifier with our backbone and head.
_RENAMES = {
    # training form
    r'stem1\.0\.': r'backbone.stem.conv.conv1.',
    r'stem1\.1\.': r'backbone.stem.conv.norm1.',
    r'stem2\.0\.': r'backbone.stem.conv.conv2.',
    r'stem2\.1\.': r'backbone.stem.conv.norm.',
    r'stem2\.2\.bn\.': r'backbone.stem.act.norm.',
    r'stem2\.2\.': r'backbone.stem.act.conv.',
    r'stages\.(\d+)\.conv1\.0\.': r'backbone.blocks.\1.conv.conv1.',
    r'stages\.(\d+)\.conv1\.1\.': r'backbone.blocks.\1.conv.norm1.',
    r'stages\.(\d+)\.conv2\.0\.': r'backbone.blocks.\1.conv.conv2.',
    r'stages\.(\d+)\.conv2\.1\.': r'backbone.blocks.\1.conv.norm.',
    r'stages\.(\d+)\.act\.bn\.': r'backbone.blocks.\1.act.norm.',
    r'cls1\.2\.': r'head.conv.conv1.',
    r'cls1\.3\.': r'head.conv.norm1.',
    r'cls2\.0\.': r'head.conv.conv2.',
    # deploy form
    r'stem\.0\.': r'backbone.stem.conv.conv.',
    r'stem\.1\.': r'backbone.stem.act.conv.',
    r'stages\.(\d+)\.conv\.': r'backbone.blocks.\1.conv.conv.',
    r'cls\.2\.': r'head.conv.conv.',
    # both
    r'stages\.(\d+)\.act\.': r'backbone.blocks.\1.act.conv.',
}


_NUMBERS = '(weight|bias|running_mean|running_var|num_batches_tracked)'
_KEY = re.compile(f'({"|".join(_RENAMES)}){_NUMBERS}')


def is_official_state_dict(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of the authors' classifiers or detectors, fused or not."""
    own = {k[len('backbone.') :] for k in state_dict if k.startswith('backbone.')}
    own = own or state_dict.keys()
    training = 'stem1.0.weight' in own
    fused = {'stem.0.weight', 'stages.0.conv.weight'} <= own
    return (training or fused) and all(_KEY.fullmatch(key) for key in own)


def convert_official_state_dict(state_dict: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """Renames the keys of an authors' state dict, in training or deploy form.

    Args:
        state_dict: ``model_ema`` or ``model`` of a released classifier, or ``state_dict`` of a
            released detector.

    Returns:
        The same tensors under the keys of an mmpretrain ``ImageClassifier`` with our backbone and
        head (``backbone.*``, ``head.*``), with λ = 1. In a detector only the backbone's keys are
        renamed: necks and heads have the same names in mmdet 2.x and 3.x.

    Raises:
        UsageError: if a key is not one of the authors'.
    """
    converted = {}
    is_detector = any(key.startswith('backbone.') for key in state_dict)
    for full_key, value in state_dict.items():
        key = re.sub(r'^backbone\.', '', full_key)
        if is_detector and key == full_key:  # neck or head
            converted[key] = value
            continue
        for pattern, replacement in _RENAMES.items():
            new_key, matched = re.subn('^' + pattern, replacement, key)
            if matched:
                converted[new_key] = value
                break
        else:
            raise UsageError(
                f"{key!r} is not a key of the authors' VanillaNet: give one of their state dicts."
            )
        if new_key.endswith('.conv1.weight'):  # a deep convolution has a λ
            lambda_key = new_key.replace('.conv1.weight', '.act._extra_state')
            converted[lambda_key] = torch.tensor(1.0, dtype=torch.float64)
    return converted
