"""VanillaNet: the Power of Minimalism in Deep Learning (https://arxiv.org/abs/2305.12972)."""

from itertools import accumulate
from operator import mul
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UsageError
from ..registry import MODELS, register
from .deep_conv import DeepConv
from .foldable import named_foldables
from .loading import (
    load_pretrained,
    pretrained_cfgs,
    rename_on_loading,
    take_classifier_weights,
)
from .recompute import recompute_in_backward
from .series_activation import SeriesActivation
from .vanilla_block import SHORTCUTS, Shortcut, ShortcutBlock, VanillaBlock


@register(MODELS)
class VanillaNet(BaseModule):
    """VanillaNet backbone.

    A stem and a row of blocks. A stage is the run of layers at one resolution; the four stages of
    the released architectures have strides 4, 8, 16 and 32. For '5' and '6' the first is the stem.

    Args:
        arch: '5' to '13', '13-x1.5', '13-x1.5-ada', or a dict of ``channels`` (after the stem and
            after each block), ``strides`` (of each block's max-pooling) and, optionally,
            ``adaptive_pool_sizes``, one per block: given, the stem is a 4x4 convolution of stride 3
            and padding 1, and a block of stride 2 pools to that size (0: plain pooling).
        in_channels: Channels of the image.
        act_num: Series number n of the activations (section 3.2).
        out_indices: Stages whose features are returned, counted from 0.
        widen_factor: Multiplies every channel count.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages.
        norm_cfg: Config of the batch norms; their eps is 1e-6 unless it gives one.
        norm_eval: Whether the norms keep their running statistics in training.
        with_cp: Whether to keep only the inputs of the blocks for the backward pass, and recompute.
        deploy: Whether to build the deploy form, for weights that are fused already.
        init_cfg: Weight initialization; truncated normal of deviation 0.02 by default.
            ``dict(type='Pretrained', checkpoint=...)`` takes checkpoints of this package, of
            mmpretrain and mmdet models that hold this backbone, and the authors' own; every key
            must match. A checkpoint of None is left out. With ``source_arch`` beside it, the
            checkpoint is of that shallower network: layers go to those at the same place of the
            same stage, and the layers that it lacks are initialized afresh.
        merged: Whether to build the merged form, for training at λ = 1 throughout, as fine-tuning
            does. Weights in deep form, the authors' too, are merged as they are loaded. Trained so
            from the start, it is the network without deep training (Table 2).
        shortcut: For the ablation of Table 3, shortcuts without parameters around the blocks:
            'before_act' or 'after_act'; None, the network itself, has none.

    Raises:
        UsageError: for an unknown arch, lengths that do not match, or indices out of range.

    Example:
        >>> import torch
        >>> from mmvanilla import VanillaNet
        >>> backbone = VanillaNet(arch='6', out_indices=(0, 1, 2, 3))
        >>> [tuple(x.shape) for x in backbone(torch.rand(1, 3, 64, 64))]
        [(1, 512, 16, 16), (1, 1024, 8, 8), (1, 2048, 4, 4), (1, 4096, 2, 2)]
    """

    # Channels after the stem and each block, strides of the blocks, as in the released weights.
    arch_settings = {
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
    arch_settings['13-x1.5'] = dict(
        channels=[channels * 3 // 2 for channels in arch_settings['13']['channels']],
        strides=arch_settings['13']['strides'],
    )
    arch_settings['13-x1.5-ada'] = dict(
        **arch_settings['13-x1.5'], adaptive_pool_sizes=[0, 38, 19, 0, 0, 0, 0, 0, 0, 10, 0]
    )

    # The authors' deviation; the paper prints 0.2 (Table 7).
    default_init_cfg = dict(type='TruncNormal', layer='Conv2d', std=0.02, bias=0.0)

    def __init__(
        self,
        arch: Union[str, dict] = '13',
        in_channels: int = 3,
        act_num: int = 3,
        out_indices: Union[int, Sequence[int]] = (3,),
        widen_factor: float = 1.0,
        frozen_stages: int = -1,
        norm_cfg: dict = dict(type='BN'),
        norm_eval: bool = False,
        with_cp: bool = False,
        deploy: bool = False,
        init_cfg: Union[dict, List[dict], None] = None,
        merged: bool = False,
        shortcut: Optional[str] = None,
    ) -> None:
        super().__init__(init_cfg)
        if shortcut not in (None, *SHORTCUTS):
            raise UsageError(
                f'shortcut={shortcut!r} is unknown: choose one of {", ".join(SHORTCUTS)}, or None.'
            )
        channels, strides, pool_sizes = self._parse_arch(arch)
        channels = [round(c * widen_factor) for c in channels]
        self.act_num = act_num
        self.norm_eval = norm_eval
        self.with_cp = with_cp

        stem_geometry = (
            dict(kernel_size=4, stride=3, padding=1)
            if pool_sizes
            else dict(kernel_size=4, stride=4)
        )
        # Stage and stride of the stem, then of each block.
        self.stage_of_layer = _stages(strides)
        stride_of_layer = tuple(accumulate(strides, mul, initial=stem_geometry['stride']))
        self.num_stages = self.stage_of_layer[-1] + 1
        self.out_indices = self._check_out_indices(out_indices, adaptive=bool(pool_sizes))
        if not -1 <= frozen_stages <= self.num_stages:
            raise UsageError(
                f'frozen_stages={frozen_stages} is out of range: choose -1 (none), 0 (the stem) or '
                f'up to {self.num_stages} (the stem and all stages).'
            )
        self.frozen_stages = frozen_stages
        last = [self._last_layer(stage) for stage in self.out_indices]
        self.out_channels = tuple(channels[layer] for layer in last)
        self.out_strides = tuple(stride_of_layer[layer] for layer in last)

        self.stem = VanillaBlock(
            DeepConv(
                in_channels,
                channels[0],
                **stem_geometry,
                mid_channels=channels[0],
                norm_cfg=norm_cfg,
                merged=merged,
                deploy=deploy,
            ),
            nn.Identity(),
            SeriesActivation(channels[0], act_num, deploy, norm_cfg),
        )
        self.blocks = nn.ModuleList()
        for i, stride in enumerate(strides):
            pooling = (stride, pool_sizes[i] if pool_sizes else 0)
            layers = (
                DeepConv(
                    channels[i], channels[i + 1], norm_cfg=norm_cfg, merged=merged, deploy=deploy
                ),
                _pool(nn.MaxPool2d, nn.AdaptiveMaxPool2d, *pooling),
                SeriesActivation(channels[i + 1], act_num, deploy, norm_cfg),
            )
            if shortcut is None:
                block = VanillaBlock(*layers)
            else:
                pool = _pool(nn.AvgPool2d, nn.AdaptiveAvgPool2d, *pooling)
                around = Shortcut(channels[i], channels[i + 1], pool)
                block = ShortcutBlock(*layers, around, shortcut)
            self.blocks.append(block)
        self._freeze_stages()
        rename_on_loading(self)

    @classmethod
    def _parse_arch(
        cls, arch: Union[str, dict]
    ) -> Tuple[List[int], List[int], Optional[List[int]]]:
        if not isinstance(arch, dict):
            if str(arch) not in cls.arch_settings:
                raise UsageError(
                    f'arch={arch!r} is unknown: choose one of '
                    f'{", ".join(map(repr, cls.arch_settings))}, or give channels and strides.'
                )
            arch = cls.arch_settings[str(arch)]
        unknown = set(arch) - {'channels', 'strides', 'adaptive_pool_sizes'}
        if unknown or not {'channels', 'strides'} <= set(arch):
            raise UsageError(
                f'arch has the keys {sorted(arch)}: it takes channels and strides, '
                'and optionally adaptive_pool_sizes.'
            )
        channels, strides = arch['channels'], arch['strides']
        pool_sizes = arch.get('adaptive_pool_sizes')
        if len(channels) != len(strides) + 1:
            raise UsageError(
                f'arch has {len(channels)} channels and {len(strides)} strides: give one stride '
                'per block, and one more channel count than strides, the first for the stem.'
            )
        if pool_sizes and len(pool_sizes) != len(strides):
            raise UsageError(
                f'arch has {len(pool_sizes)} adaptive_pool_sizes and {len(strides)} strides: give '
                'one size per block, 0 for plain pooling.'
            )
        return list(channels), list(strides), pool_sizes

    def _check_out_indices(
        self, out_indices: Union[int, Sequence[int]], adaptive: bool
    ) -> Tuple[int, ...]:
        out_indices = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
        last = self.num_stages - 1
        if not out_indices or not all(0 <= stage <= last for stage in out_indices):
            raise UsageError(
                f'out_indices={out_indices} is out of range: the stages are 0 to {last}.'
            )
        if list(out_indices) != sorted(set(out_indices)):
            raise UsageError(
                f'out_indices={out_indices} must ascend: features come out in that order.'
            )
        if adaptive and out_indices != (last,):
            raise UsageError(
                f'out_indices={out_indices} is refused: this architecture pools to sizes fixed for '
                'a 224x224 image, so it has no dense features; use another arch, or '
                f'out_indices=({last},).'
            )
        return out_indices

    def _last_layer(self, stage: int) -> int:
        """Index of the last layer of a stage; layer 0 is the stem, layer i + 1 block i."""
        return max(i for i, s in enumerate(self.stage_of_layer) if s == stage)

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Features of the stages in ``out_indices``.

        Args:
            x: Images, (N, in_channels, H, W).

        Returns:
            One (N, out_channels[i], H / out_strides[i], W / out_strides[i]) per out index, sizes
            rounded down at every stride.
        """
        # A training step of a detector is 1.3 times faster so: torch's depthwise convolutions.
        inside_channels_last = x.device.type == 'cpu' and x.is_contiguous()
        if inside_channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        outs = {}
        last = self._last_layer(self.out_indices[-1])
        for i, layer in enumerate([self.stem, *self.blocks][: last + 1]):
            x = recompute_in_backward(layer, x, layer) if self.with_cp else layer(x)
            outs[self.stage_of_layer[i]] = x
        features = (outs[stage] for stage in self.out_indices)
        if inside_channels_last:  # heads may view() their maps, which takes the usual layout
            features = (x.contiguous() for x in features)
        return tuple(features)

    def init_weights(self) -> None:
        """Initializes by ``init_cfg``; pre-trained weights are loaded strictly.

        Raises:
            UsageError: if a pre-trained checkpoint is absent, unreadable or does not fit.
        """
        given = self.init_cfg
        cfgs = [given] if isinstance(given, dict) else given or []
        pretrained = list(pretrained_cfgs(given))
        # mmengine would load with strict=False, and a misnamed key would be but a line in the log.
        self.init_cfg = [cfg for cfg in cfgs if cfg not in pretrained] or self.default_init_cfg
        super().init_weights()
        self.init_cfg = given
        for cfg in pretrained:
            if cfg.get('checkpoint') is not None:
                source = cfg.get('source_arch')
                load_pretrained(
                    self,
                    cfg['checkpoint'],
                    cfg.get('prefix'),
                    None if source is None else self._layers_of(source),
                )

    def _layers_of(self, source_arch: Union[str, dict]) -> Dict[str, str]:
        """The layer of this network for each layer of a shallower one, stage by stage."""
        names = []
        for stages in (_stages(self._parse_arch(source_arch)[1]), self.stage_of_layer):
            layers = ['stem', *(f'blocks.{i}' for i in range(len(stages) - 1))]
            # (stage, place in the stage) -> name; the layers of a stage are neighbours
            places = {(s, i - stages.index(s)): layers[i] for i, s in enumerate(stages)}
            names.append(places)
        its, own = names
        if not its.keys() <= own.keys():
            raise UsageError(
                f'source_arch={source_arch!r} has more layers in a stage than the backbone: give '
                'a shallower one.'
            )
        return {name: own[place] for place, name in its.items()}

    def _checkpoint_filter(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Called by mmpretrain's ImageClassifier before it loads a state dict, in place.

        Every key of a backbone must match, which mmengine would not ask for; weights without a
        backbone are left alone.

        Raises:
            UsageError: if the weights are not this backbone's.
        """
        take_classifier_weights(self, state_dict, prefix)

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        for stage, layer in zip(self.stage_of_layer, [self.stem, *self.blocks]):
            if layer is self.stem or stage < self.frozen_stages:
                layer.eval()
                layer.requires_grad_(False)

    def train(self, mode: bool = True) -> 'VanillaNet':
        """Sets the mode; frozen stages stay in eval mode, and all norms under ``norm_eval``."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def switch_to_deploy(self) -> None:
        """Any form to deploy form, in place; raises UsageError if λ is not 1."""
        layers = [layer for _, layer in named_foldables(self)]
        for layer in layers:
            layer.check_foldable()
        for layer in layers:
            layer.switch_to_deploy()

    def get_layer_depth(self, param_name: str, prefix: str = '') -> Tuple[int, int]:
        """Layer id of a parameter, for layer-wise learning rate decay.

        Args:
            param_name: Name of the parameter.
            prefix: What the name of this backbone's parameters begins with, such as 'backbone.'.

        Returns:
            ``(layer_id, num_layers)``: 0 for the stem, i + 1 for block i, and ``num_layers - 1``
            for everything outside the backbone, where ``num_layers`` is the number of blocks + 2.
        """
        num_layers = len(self.blocks) + 2
        if not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        parts = param_name[len(prefix) :].split('.')
        return (int(parts[1]) + 1 if parts[0] == 'blocks' else 0), num_layers


def _pool(plain: type, adaptive: type, stride: int, size: int) -> nn.Module:
    """Pooling by a stride, or to a fixed size if that is not 0."""
    if stride == 1:
        return nn.Identity()
    return adaptive(size) if size else plain(stride)


def _stages(strides: Sequence[int]) -> Tuple[int, ...]:
    """Stage of the stem, then of each block: a new one begins wherever the resolution falls."""
    return tuple(accumulate((s > 1 for s in strides), initial=0))
