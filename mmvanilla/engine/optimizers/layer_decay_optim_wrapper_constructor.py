"""Layer-wise learning rate decay for any model whose backbone knows the depth of its layers."""

import inspect
from math import ceil
from typing import Any, List, Mapping

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from ...arguments import ABOVE_0, AT_LEAST_1, check_arguments
from ...errors import UsageError
from ...registry import OPTIM_WRAPPER_CONSTRUCTORS, register


@register(OPTIM_WRAPPER_CONSTRUCTORS)
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Scales a layer's learning rate by ``decay_rate ** d``, d the number of layers after it.

    It asks the backbone, not the model, for the depth (``get_layer_depth``), so it works for
    detectors, classifiers and segmentors alike, with mmpretrain's backbones too. A model may have
    several backbones; frozen ones are left out. Everything outside them has scale 1. Norms and
    biases have no weight decay.

    ``paramwise_cfg`` holds ``decay_rate`` and ``blocks_per_layer``, the number of blocks that count
    as one layer; both are 1 by default. On COCO the authors use ``blocks_per_layer=2``: the stem of
    VanillaNet-13 then has the scale ``rate ** 7``, its last blocks ``rate``.

    Raises:
        UsageError: for other keys, wrong values, an optimizer without a learning rate, or if no
            module of the model has ``get_layer_depth``.
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        check_arguments(_settings, 'paramwise_cfg', (), self.paramwise_cfg, _RANGES)
        # With an empty paramwise_cfg mmengine would not call add_params, which sets weight decay.
        self.paramwise_cfg = {'decay_rate': 1.0, 'blocks_per_layer': 1, **self.paramwise_cfg}
        if self.base_lr is None:
            raise UsageError('LayerDecayOptimWrapperConstructor needs an optimizer with lr.')

    def add_params(self, params: List[dict], module: nn.Module, **kwargs: Any) -> None:
        """Appends one group per layer and kind of weight decay to ``params``."""
        # mmpretrain's classifiers have a method of this name too, without a prefix.
        named = {
            name and f'{name}.': part
            for name, part in module.named_modules()
            if 'prefix' in _parameters(getattr(part, 'get_layer_depth', None))
        }
        backbones = sorted(named, key=len, reverse=True)  # the innermost first
        if not backbones:
            raise UsageError(
                f'{type(module).__name__} has no backbone with get_layer_depth, which layer-wise '
                'decay needs: use mmvanilla.VanillaNet, or a backbone of mmpretrain that has it.'
            )
        rate, blocks_per_layer = (
            self.paramwise_cfg['decay_rate'],
            self.paramwise_cfg['blocks_per_layer'],
        )
        groups = {}
        for param_name, param in module.named_parameters():
            if not param.requires_grad:
                continue
            # Any backbone knows that a parameter is outside of it.
            name = next((each for each in backbones if param_name.startswith(each)), backbones[0])
            layer_id, num_layers = named[name].get_layer_depth(param_name, name)
            last = ceil((num_layers - 2) / blocks_per_layer) + 1  # everything after the blocks
            if layer_id == num_layers - 1:
                layer_id = last
            elif layer_id > 0:
                layer_id = (layer_id - 1) // blocks_per_layer + 1
            decays = param.ndim > 1
            key = (layer_id - last, name if layer_id < last else '', decays)
            if key not in groups:
                groups[key] = dict(
                    params=[],
                    lr=self.base_lr * rate ** (last - layer_id),
                    weight_decay=(self.base_wd or 0.0) * decays,
                    layer_id=layer_id,
                )
            groups[key]['params'].append(param)
        for (_, name, _), group in sorted(groups.items()):
            print_log(
                f'{name}layer {group["layer_id"]}: lr={group["lr"]:.3g}, '
                f'weight_decay={group["weight_decay"]:g}, {len(group["params"])} parameters',
                logger='current',
            )
        params.extend(group for _, group in sorted(groups.items()))


def _settings(decay_rate: float = 1.0, blocks_per_layer: int = 1) -> None:
    """What ``paramwise_cfg`` may hold."""


_RANGES = dict(decay_rate=ABOVE_0, blocks_per_layer=AT_LEAST_1)


def _parameters(function: Any) -> Mapping[str, Any]:
    return inspect.signature(function).parameters if callable(function) else {}
