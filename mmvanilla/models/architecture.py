"""The architectures of the released models, and how their layers form stages."""

from itertools import accumulate
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

from ..arguments import AT_LEAST_0, AT_LEAST_1, check_value
from ..errors import UsageError

# Channels after the stem and after each block, and strides of the blocks, as in the released
# weights. For '5' and '6' the first stage is the stem itself.
ARCHITECTURES: Dict[str, Dict[str, Any]] = {
    '5': dict(channels=[512, 1024, 2048, 4096], strides=[2, 2, 2]),
    '6': dict(channels=[512, 1024, 2048, 4096, 4096], strides=[2, 2, 2, 1]),
    **{
        str(depth): dict(
            channels=[512, 512, 1024] + [2048] * (depth - 6) + [4096] * 2,
            strides=[1, 2, 2] + [1] * (depth - 7) + [2, 1],
        )
        for depth in range(7, 14)
    },
}
ARCHITECTURES['13-x1.5'] = dict(
    channels=[channels * 3 // 2 for channels in ARCHITECTURES['13']['channels']],
    strides=ARCHITECTURES['13']['strides'],
)
ARCHITECTURES['13-x1.5-ada'] = dict(
    **ARCHITECTURES['13-x1.5'], adaptive_pool_sizes=[0, 38, 19, 0, 0, 0, 0, 0, 0, 10, 0]
)


def parse_arch(
    arch: Union[str, int, dict], architectures: Dict[str, Dict[str, Any]] = ARCHITECTURES
) -> Tuple[List[int], List[int], Optional[List[int]]]:
    """Channels, strides and adaptive pooling sizes (or None) of an ``arch`` argument.

    Args:
        arch: A name, or the channels, strides and sizes themselves.
        architectures: The architectures that have names.

    Raises:
        UsageError: if the name is unknown, if the lengths do not match, or if there is something
            other than whole numbers.
    """
    if not isinstance(arch, dict):
        if str(arch) not in architectures:
            raise UsageError(
                f'arch={arch!r} is unknown: choose one of '
                f'{", ".join(map(repr, architectures))}, or give a dict of channels and strides.'
            )
        arch = architectures[str(arch)]
    unknown = set(arch) - {'channels', 'strides', 'adaptive_pool_sizes'}
    if unknown or not {'channels', 'strides'} <= set(arch):
        raise UsageError(
            f'arch has the keys {sorted(arch)}, but takes channels and strides, and optionally '
            'adaptive_pool_sizes.'
        )
    channels, strides = arch['channels'], arch['strides']
    pool_sizes = arch.get('adaptive_pool_sizes')
    check_value('channels of arch', channels, Sequence[int], AT_LEAST_1)
    check_value('strides of arch', strides, Sequence[int], AT_LEAST_1)
    check_value('adaptive_pool_sizes of arch', pool_sizes, Optional[Sequence[int]], AT_LEAST_0)
    if len(channels) != len(strides) + 1:
        raise UsageError(
            f'arch has {len(channels)} channels and {len(strides)} strides: give the channels of '
            'the stem and of each block, and a stride for each block.'
        )
    if pool_sizes and len(pool_sizes) != len(strides):
        raise UsageError(
            f'arch has {len(pool_sizes)} adaptive_pool_sizes and {len(strides)} strides: give a '
            'size for each block, 0 to pool by the stride.'
        )
    return list(channels), list(strides), pool_sizes


def widen(channels: Sequence[int], factor: float) -> List[int]:
    """Multiplies channels by a factor; raises UsageError if that leaves a layer without any."""
    widened = [round(c * factor) for c in channels]
    if min(widened) < 1:
        raise UsageError(
            f'widen_factor={factor} leaves no channel of {min(channels)}: make it larger.'
        )
    return widened


def find_stages(strides: Sequence[int]) -> Tuple[int, ...]:
    """The stage of the stem, then of each block; a stage begins wherever the resolution drops."""
    return tuple(accumulate((s > 1 for s in strides), initial=0))


def match_layers(
    source_arch: Union[str, dict],
    stages: Sequence[int],
    architectures: Dict[str, Dict[str, Any]] = ARCHITECTURES,
) -> Dict[str, str]:
    """Maps each layer of a shallower network to the layer at the same place in the same stage.

    Args:
        source_arch: The shallower network.
        stages: The stages of the deeper network's layers, as ``find_stages`` returns them.
        architectures: The architectures that have names.

    Raises:
        UsageError: if the shallower network has more layers in some stage.
    """
    source = _layers_by_place(find_stages(parse_arch(source_arch, architectures)[1]))
    own = _layers_by_place(stages)
    if not source.keys() <= own.keys():
        raise UsageError(
            f'source_arch={source_arch!r} has more layers in some stage than the backbone: give a '
            'shallower one.'
        )
    return {layer: own[place] for place, layer in source.items()}


def _layers_by_place(stages: Sequence[int]) -> Dict[Tuple[int, int], str]:
    """(stage, place in the stage) -> name of the layer."""
    names = ['stem', *(f'blocks.{i}' for i in range(len(stages) - 1))]
    return {(s, i - stages.index(s)): names[i] for i, s in enumerate(stages)}
