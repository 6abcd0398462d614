"""The paper's two techniques for networks of ordinary convolutions and ReLU modules (Table 2).

The paper applies them to AlexNet and ResNet-50 without saying to which layers. Here it is all of
them: every convolution is trained as two, every ReLU on feature maps becomes a series activation.
"""

from threading import get_ident
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple, Union

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized

from ..errors import UsageError
from ..registry import MODELS, register
from .deep_conv import DeepConv
from .folding.arithmetic import geometry_of
from .folding.foldable import Foldable
from .folding.network import copy_network, switch_to_deploy
from .loading.names import rename_on_loading
from .series_activation import SeriesActivation

# The Python modules of ordinary convolutions: torch's, and mmcv's wrapper for empty batches.
ORDINARY = (nn.Conv2d.__module__, 'mmcv.cnn.bricks.wrappers')
# A module, its name for one of its children, and the child's name in the whole network.
Place = Tuple[nn.Module, str, str]


def add_deep_training(
    model: nn.Module,
    norm_cfg: dict = dict(type='BN'),
    skip: Union[str, Sequence[str]] = (),
    inplace: bool = False,
) -> nn.Module:
    """Replaces every convolution of a network by a deep convolution (section 3.1).

    The first of the two convolutions has the geometry and the output channels of the one that it
    replaces; the second is 1x1 with the same groups. Such a pair merges exactly, whatever the
    kernel size, stride, padding or dilation. The norms of the network stay where they are. The new
    weights are random: train the network afterwards. On maps of 1x1, as in
    squeeze-and-excitation, the norms inside the pairs see one value per image: ``skip`` those
    layers, or train with large batches.

    Args:
        model: Any module. Its linear layers stay as they are.
        norm_cfg: Config of the norms inside the pairs.
        skip: Names of layers to leave as they are, with everything inside them.
        inplace: Whether to change ``model`` itself instead of a copy.

    Returns:
        The network. ``set_deep_training_lambda``, ``merge_deep_convs``, ``switch_to_deploy`` and
        ``DeepTrainingHook`` work on it.

    Raises:
        UsageError: if there is no convolution, or one that a pair cannot replace (transposed, not
            two-dimensional, with arithmetic of its own, frozen, or inside a layer that folds
            itself); if the network keeps its norms in eval mode (``norm_eval=True``, mmdet's
            default for ResNet).
    """
    model = model if inplace else copy_network(model)
    skip = _names(model, skip)
    places = list(_places(model, _ConvNd, skip))
    if not places:
        raise UsageError(f'{type(model).__name__} has no convolution (left) to train as two.')
    for place in places:
        _check_conv(model, *place)
    _check_norms(model, skip)
    # In the network's order, on which the random weights depend.
    convs = dict.fromkeys(getattr(parent, child) for parent, child, _ in places)
    deep = {conv: _make_deep(conv, norm_cfg) for conv in convs}
    for parent, child, _ in places:
        layer = getattr(parent, child)
        setattr(parent, child, deep.get(layer, layer))  # replaced already: a parent in two places
    rename_on_loading(model)
    return model


def add_series_activation(
    model: nn.Module,
    act_num: int = 3,
    norm_cfg: dict = dict(type='BN'),
    skip: Union[str, Sequence[str]] = (),
    input_shape: Sequence[int] = (3, 224, 224),
    inplace: bool = False,
) -> nn.Module:
    """Replaces every ReLU on feature maps of a network by a series activation (section 3.2).

    The network is run once on the meta device to find the channels of each. A ReLU module that is
    called several times, as in the blocks of ResNet, becomes as many series activations. The
    network must use what its ReLUs return, even where they work in place.

    Args:
        model: Any module that takes a batch of images.
        act_num: Series number n.
        norm_cfg: Config of the series activations' norms.
        skip: Names of layers to leave as they are, with everything inside them.
        input_shape: Channels, height and width of an image that the network takes.
        inplace: Whether to change ``model`` itself instead of a copy.

    Returns:
        The network. Other activations stay, as do ReLUs that are not called in eval mode, or that
        are called on vectors or on maps of 1x1.

    Raises:
        UsageError: if the network cannot be run like this, or calls no ReLU module on feature maps;
            if a ReLU is among frozen layers, or its calls cannot be told apart; if the network
            keeps its norms in eval mode (``norm_eval=True``, mmdet's default for ResNet).
    """
    model = model if inplace else copy_network(model)
    skip = _names(model, skip)
    channels = _channels_of_calls(model, skip, input_shape)
    if not channels:
        raise UsageError(
            f'{type(model).__name__} calls no nn.ReLU on feature maps (any more): other modules, '
            'and functions such as F.relu, are not replaced.'
        )
    _check_norms(model, skip)
    for parent, child, name in list(_places(model, nn.ReLU, skip)):
        if name in channels:
            like = next(model.parameters())
            activations = [
                SeriesActivation(each, act_num, norm_cfg=norm_cfg).to(like.device, like.dtype)
                for each in channels[name]
            ]
            one = activations[0] if len(activations) == 1 else _InTurn(parent, activations)
            setattr(parent, child, one.train(getattr(parent, child).training))
    rename_on_loading(model)
    return model


@register(MODELS)
def with_techniques(
    network: dict,
    deep_training: bool = True,
    act_num: Optional[int] = 3,
    norm_cfg: dict = dict(type='BN'),
    skip: Union[str, Sequence[str]] = (),
    input_shape: Sequence[int] = (3, 224, 224),
    deploy: bool = False,
) -> nn.Module:
    """Builds a network with the paper's techniques from a config: ``mmvanilla.with_techniques``.

    Args:
        network: Config of the network, from any OpenMMLab package.
        deep_training: Whether to apply ``add_deep_training``.
        act_num: Series number of ``add_series_activation``; None keeps the ReLUs.
        norm_cfg: Config of the norms that the techniques add.
        skip: Names of layers to leave as they are.
        input_shape: Channels, height and width of an image that the network takes.
        deploy: Whether to build the deploy form, for weights that are already fused.

    Returns:
        The network itself, with the names and attributes that it has without the techniques.

    Raises:
        UsageError: as ``add_deep_training`` and ``add_series_activation`` do.

    Example:
        >>> backbone = dict(
        ...     type='mmvanilla.with_techniques', network=dict(type='ResNet', depth=50), act_num=3
        ... )
    """
    model = MODELS.build(network)
    if deep_training:
        add_deep_training(model, norm_cfg, skip, inplace=True)
    if act_num is not None:
        add_series_activation(model, act_num, norm_cfg, skip, input_shape, inplace=True)
    return switch_to_deploy(model, inplace=True) if deploy else model


class _InTurn(nn.ModuleList):
    """The series activations of a ReLU that ``parent`` calls several times: one for each call.

    The parent must make these calls in the same order whenever it runs.
    """

    def __init__(self, parent: nn.Module, activations: Sequence[nn.Module]) -> None:
        super().__init__(activations)
        self.turns: Dict[int, int] = {}  # by thread
        _start_turns_with(parent)

    def forward(self, x: Tensor) -> Tensor:
        turn = self.turns.get(get_ident(), 0) % len(self)  # tracers leave out hooks of the network
        self.turns[get_ident()] = turn + 1
        return self[turn](x)


class _ChannelsOfCalls(nn.Module):
    """Takes the place of a ReLU and records the channels of each call that ``parent`` makes."""

    def __init__(self, parent: nn.Module) -> None:
        super().__init__()
        self.turns: Dict[int, int] = {}
        # By call; None stands for anything that is not a feature map.
        self.channels: Dict[int, Set[Optional[int]]] = {}
        _start_turns_with(parent)

    def forward(self, x: Tensor) -> Tensor:
        found = x.shape[1] if x.dim() == 4 and x.shape[2:].numel() > 1 else None
        turn = self.turns.get(get_ident(), -1)  # -1 until its parent is called
        self.channels.setdefault(turn, set()).add(found)
        self.turns[get_ident()] = turn + 1
        return x


def _start_turns_with(parent: nn.Module) -> None:
    if _start_turns not in parent._forward_pre_hooks.values():
        parent.register_forward_pre_hook(_start_turns)


def _start_turns(parent: nn.Module, args: Any) -> None:
    for child in parent.children():
        if isinstance(child, (_InTurn, _ChannelsOfCalls)):
            child.turns[get_ident()] = 0


def _channels_of_calls(
    model: nn.Module, skip: Set[str], input_shape: Sequence[int]
) -> Dict[str, List[int]]:
    """The channels of each call of each ReLU on feature maps, by the name of the ReLU."""
    probe = copy_network(model).to('meta', torch.float32)
    probe.eval()
    places = list(_places(probe, nn.ReLU, skip))
    for parent, child, _ in places:
        setattr(parent, child, _ChannelsOfCalls(parent))
    try:
        with torch.no_grad():
            probe(torch.empty(1, *input_shape, device='meta'))
    except Exception as error:
        raise UsageError(
            f'{type(model).__name__} cannot be run on an image of {tuple(input_shape)} to find the '
            f'channels of its activations (if it takes other images, give input_shape): {error}'
        ) from error
    found = {}
    for parent, child, name in places:
        channels = getattr(parent, child).channels
        if set().union(*channels.values()) - {None}:  # some call is on feature maps
            _check_relu(parent, channels, name)
            found[name] = [one for (one,) in channels.values()]
    return found


def _check_relu(parent: nn.Module, channels: Dict[int, Set[Optional[int]]], name: str) -> None:
    """Refuses a ReLU that series activations cannot replace."""
    parameters = list(parent.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        why = 'among frozen layers (frozen_stages), where a series activation would stay random'
    elif {None} in channels.values() or any(len(each) > 1 for each in channels.values()):
        why = 'called with different numbers of channels, or not only on feature maps'
    elif len(channels) > 1 and -1 in channels:
        why = f'called several times, but not by the {type(parent).__name__} that holds it'
    elif len(channels) > 1 and getattr(parent, 'with_cp', False):
        why = 'called several times, and again in the backward pass (with_cp=True)'
    else:
        return
    raise UsageError(f"{name} is {why}: change that, or keep the ReLU with skip=('{name}',).")


def _check_norms(model: nn.Module, skip: Set[str]) -> None:
    """Refuses a network that keeps its norms in eval mode, including those of the techniques."""
    for name, module in model.named_modules():
        skipped = any(f'{name}.'.startswith(f'{other}.') for other in skip)
        if getattr(module, 'norm_eval', False) and not skipped:
            raise UsageError(
                f'{type(module).__name__} has norm_eval=True, so the norms that the techniques add '
                'would never collect statistics: set norm_eval=False.'
            )


def _check_conv(model: nn.Module, parent: nn.Module, child: str, name: str) -> None:
    """Refuses a convolution that a pair cannot replace."""
    conv = getattr(parent, child)
    above = ['.'.join(name.split('.')[:depth]) for depth in range(name.count('.') + 1)]
    folding = [n for n in above if hasattr(model.get_submodule(n), 'switch_to_deploy')]
    if folding:
        name = folding[0]
        why = 'folds its convolutions itself (switch_to_deploy)'
    elif 'weight' in parent._parameters:  # a deformable convolution, which takes offsets from conv
        name = above[-1]
        why = 'computes with what its convolution returns'
    elif (
        not isinstance(conv, nn.Conv2d)
        or type(conv).forward.__module__ not in ORDINARY
        or type(conv)._conv_forward is not nn.Conv2d._conv_forward
        or is_parametrized(conv)
        or conv._forward_pre_hooks  # such as those of the older weight norm
    ):
        why = 'does not merge with a 1x1 convolution after it'
    elif not conv.weight.requires_grad:
        why = 'is frozen (frozen_stages), so a pair would stay random'
    else:
        return
    kind = type(model.get_submodule(name)).__name__
    mend = f"leave it as it is with skip=('{name}',)" if name else 'use another network'
    raise UsageError(f'{name or "the network"} is a {kind}, which {why}: {mend}.')


def _make_deep(conv: nn.Conv2d, norm_cfg: dict) -> DeepConv:
    deep = DeepConv(
        conv.in_channels,
        conv.out_channels,
        **geometry_of(conv),
        mid_channels=conv.out_channels,
        norm_cfg=norm_cfg,
        final_norm=False,
    )
    return deep.to(conv.weight.device, conv.weight.dtype).train(conv.training)


def _names(model: nn.Module, skip: Union[str, Sequence[str]]) -> Set[str]:
    """The names in ``skip``, which may be a single one."""
    names = {skip} if isinstance(skip, str) else set(skip)
    unknown = sorted(names - dict(model.named_modules()).keys())
    if unknown:
        raise UsageError(f'{type(model).__name__} has no layer {unknown[0]}: take it out of skip.')
    return names


def _places(parent: nn.Module, kind: type, skip: Set[str], prefix: str = '') -> Iterator[Place]:
    """Where modules of a kind are, except those in ``skip`` and those of the techniques."""
    for child_name, child in parent._modules.items():
        name = prefix + child_name
        if name in skip or isinstance(child, (Foldable, _InTurn)):
            continue
        if isinstance(child, kind):
            yield parent, child_name, name
        elif child is not None:
            yield from _places(child, kind, skip, f'{name}.')
