"""VanillaNet: the Power of Minimalism in Deep Learning (https://arxiv.org/abs/2305.12972)."""

from itertools import accumulate
from operator import mul
from typing import Any, List, Optional, Sequence, Tuple, Union

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..arguments import ABOVE_0, AT_LEAST_0, AT_LEAST_1, checked
from ..compatibility import is_compiling
from ..errors import UsageError
from ..registry import MODELS, register
from .architecture import ARCHITECTURES, find_stages, match_layers, parse_arch, widen
from .deep_conv import DeepConv
from .efficiency.on_cpu import channels_last_on_cpu, in_training_on_cpu, lean_block
from .efficiency.recompute import recompute_in_backward
from .folding.foldable import as_graph, named_foldables
from .loading.names import rename_on_loading
from .loading.weights import (
    load_pretrained,
    pretrained_cfgs,
    take_classifier_weights,
    with_pretrained,
)
from .series_activation import SeriesActivation
from .shortcut import Shortcut, ShortcutBlock, check_shortcut


class VanillaBlock(nn.Module):
    """The one layer that VanillaNet is built of: deep convolution, pooling, series activation.

    Args:
        conv: The deep convolution (section 3.1).
        pool: The pooling, ``nn.Identity()`` for none.
        act: The series activation (section 3.2).

    Shape: (N, C_in, H, W) to (N, C_out, H', W').
    """

    def __init__(self, conv: DeepConv, pool: nn.Module, act: SeriesActivation) -> None:
        super().__init__()
        self.conv = conv
        self.pool = pool
        self.act = act

    __prepare_scriptable__ = as_graph

    @in_training_on_cpu(lean_block)
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.pool(self.conv(x)))


@register(MODELS)
class VanillaNet(BaseModule):
    """VanillaNet backbone: a stem and a sequence of blocks, without shortcuts or attention.

    A stage is a sequence of layers at one resolution. The released architectures have four stages,
    of strides 4, 8, 16 and 32 (3, 6, 12 and 24 in '13-x1.5-ada').

    Args:
        arch: '5' to '13', '13-x1.5', '13-x1.5-ada', or a dict of ``channels`` (after the stem and
            after each block), ``strides`` (of each block's max-pooling) and, optionally,
            ``adaptive_pool_sizes``, one per block. If these are given, the stem is a 4x4
            convolution of stride 3 and padding 1, and a block of stride 2 pools to its size (0:
            by its stride).
        in_channels: Channels of the image.
        act_num: Series number n of the activations (section 3.2).
        out_indices: Stages whose features are returned, counted from 0.
        widen_factor: Multiplies every channel count.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages.
        norm_cfg: Config of the batch norms. Their eps is 1e-6 unless the config sets one.
        norm_eval: Whether the norms stay in eval mode during training.
        with_cp: Whether to keep only the inputs of the blocks for the backward pass and to
            recompute the rest.
        deploy: Whether to build the deploy form, for weights that are already fused.
        init_cfg: Weight initialization; a truncated normal with std 0.02 by default.
            ``dict(type='Pretrained', checkpoint=...)`` loads checkpoints of this package, of
            mmpretrain and mmdet models that contain this backbone, and the authors' own files.
            Every key must match. A checkpoint of None is ignored. With ``source_arch``, the
            checkpoint is that of a shallower network: its layers go to the layers at the same
            place in the same stage, and the layers that it lacks keep their initialization.
        merged: Whether to build the merged form, which trains at λ = 1 from the start, as in
            fine-tuning. Weights in deep form, including the authors', are merged on loading. From
            random weights this is the network without deep training (Table 2).
        shortcut: For the ablation of Table 3, adds parameter-free shortcuts around the blocks:
            'before_act' or 'after_act'. VanillaNet itself has none.
        pretrained: The same as ``dict(type='Pretrained', checkpoint=...)`` in ``init_cfg``; mmseg's
            segmentors hand theirs on by this name.

    Raises:
        UsageError: for arguments of other names or kinds, or values that are out of range.

    Example:
        >>> import torch
        >>> from mmvanilla import VanillaNet
        >>> backbone = VanillaNet(arch='6', out_indices=(0, 1, 2, 3))
        >>> [tuple(x.shape) for x in backbone(torch.rand(1, 3, 64, 64))]
        [(1, 512, 16, 16), (1, 1024, 8, 8), (1, 2048, 4, 4), (1, 4096, 2, 2)]
    """

    arch_settings = ARCHITECTURES
    # std is that of the authors' code; the paper prints 0.2 (Table 7).
    default_init_cfg = dict(type='TruncNormal', layer='Conv2d', std=0.02, bias=0.0)
    __prepare_scriptable__ = as_graph

    @checked(in_channels=AT_LEAST_1, act_num=AT_LEAST_0, widen_factor=ABOVE_0)
    def __init__(
        self,
        arch: Union[str, int, dict] = '13',
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
        pretrained: Optional[str] = None,
    ) -> None:
        super().__init__(with_pretrained(init_cfg, pretrained))
        check_shortcut(shortcut)
        channels, strides, pool_sizes = parse_arch(arch, self.arch_settings)
        channels = widen(channels, widen_factor)
        self.in_channels = in_channels
        self.act_num = act_num
        self.norm_eval = norm_eval
        self.with_cp = with_cp

        stem = (
            dict(kernel_size=4, stride=3, padding=1)
            if pool_sizes
            else dict(kernel_size=4, stride=4)
        )
        form = dict(norm_cfg=norm_cfg, merged=merged, deploy=deploy)
        # Stage and stride of the stem, then of each block.
        self.stage_of_layer = find_stages(strides)
        stride_of_layer = tuple(accumulate(strides, mul, initial=stem['stride']))
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
        self.min_size = 2 if pool_sizes else self.out_strides[-1]

        self.stem = VanillaBlock(
            DeepConv(in_channels, channels[0], **stem, mid_channels=channels[0], **form),
            nn.Identity(),
            SeriesActivation(channels[0], act_num, deploy, norm_cfg),
        )
        self.blocks = nn.ModuleList()
        for i, stride in enumerate(strides):
            pooling = (stride, pool_sizes[i] if pool_sizes else 0)
            layers = (
                DeepConv(channels[i], channels[i + 1], **form),
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
        rename_on_loading(self, whole=True)

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

    @channels_last_on_cpu
    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Features of the stages in ``out_indices``.

        Args:
            x: Images, (N, in_channels, H, W).

        Returns:
            One (N, out_channels[i], H / out_strides[i], W / out_strides[i]) per out index, sizes
            rounded down at every stride.

        Raises:
            UsageError: if the images have other channels, or are smaller than the last stride.
        """
        if isinstance(x, Tensor) and not (is_compiling() or torch.jit.is_tracing()):
            self.check_images(x)
        outs = {}
        for stage, layer in zip(self.stage_of_layer, (self.stem, *self.blocks)):
            if stage > self.out_indices[-1]:
                break
            x = recompute_in_backward(layer, x, layer) if self.with_cp else layer(x)
            outs[stage] = x  # (N, C, H, W); the last layer of the stage writes last
        return tuple(outs[stage] for stage in self.out_indices)

    def check_images(self, x: Tensor) -> None:
        """Raises UsageError if it cannot be called with images like ``x``."""
        if x.dim() != 4:
            raise UsageError(f'images must be a batch, (N, C, H, W), got {tuple(x.shape)}.')
        channels, *size = x.shape[1:]
        if channels != self.in_channels:
            raise UsageError(
                f'the images have {channels} channel(s), but the network has in_channels='
                f'{self.in_channels}: build it with in_channels={channels}, or change the images '
                '(mean and std of the data_preprocessor have as many values).'
            )
        if min(size) < self.min_size:
            raise UsageError(
                f'images of {size[0]}x{size[1]} are too small for features of stride '
                f'{self.out_strides[-1]}: make them at least {self.min_size} pixels high and wide, '
                'or take earlier stages (out_indices).'
            )

    def init_weights(self) -> None:
        """Initializes by ``init_cfg``; pre-trained weights are loaded strictly.

        Raises:
            UsageError: if a pre-trained checkpoint is absent, unreadable or does not fit.
        """
        given = self.init_cfg
        cfgs = [given] if isinstance(given, dict) else given or []
        pretrained = list(pretrained_cfgs(given))
        # mmengine would load with strict=False, where a misnamed key is only logged.
        self.init_cfg = [cfg for cfg in cfgs if cfg not in pretrained] or self.default_init_cfg
        super().init_weights()
        self.init_cfg = given
        for cfg in pretrained:
            if cfg.get('checkpoint') is not None:
                layers = None
                if cfg.get('source_arch') is not None:
                    layers = match_layers(
                        cfg['source_arch'], self.stage_of_layer, self.arch_settings
                    )
                load_pretrained(self, cfg['checkpoint'], cfg.get('prefix'), layers)

    def _checkpoint_filter(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Called by mmpretrain's ImageClassifier before it loads a state dict; edits that in place.

        Every key of a backbone must match, which mmengine would not check; weights without a
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
        """Fuses the backbone in place; raises UsageError if λ is not 1."""
        layers = [layer for _, layer in named_foldables(self)]
        for layer in layers:
            layer.check_foldable()
        for layer in layers:
            layer.switch_to_deploy()

    def get_layer_depth(self, param_name: str, prefix: str = '') -> Tuple[int, int]:
        """Layer id of a parameter, for layer-wise learning rate decay.

        Args:
            param_name: Name of the parameter.
            prefix: What the names of this backbone's parameters begin with, such as 'backbone.'.

        Returns:
            ``(layer_id, num_layers)``: 0 for the stem, i + 1 for block i, and ``num_layers - 1``
            for everything outside the backbone, where ``num_layers`` is the number of blocks + 2.
        """
        num_layers = len(self.blocks) + 2
        if not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        parts = param_name[len(prefix) :].split('.')
        return (int(parts[1]) + 1 if parts[0] == 'blocks' else 0), num_layers


def _pool(by_stride: type, to_size: type, stride: int, size: int) -> nn.Module:
    """Pooling by a stride, or to a fixed size if that is not 0."""
    if stride == 1:
        return nn.Identity()
    return to_size(size) if size else by_stride(stride)
