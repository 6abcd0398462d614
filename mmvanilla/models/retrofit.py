"""The paper's two techniques for networks of plain convolutions and ReLU modules (Table 2).

The paper gives them to AlexNet and ResNet-50, and leaves open to which layers. Here it is all of
them: every convolution is trained as two, every ReLU on feature maps is a series activation.
"""

from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple, Union

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized

from ..errors import UsageError
from ..registry import MODELS, register
from .deep_conv import DeepConv
from .folding.foldable import Foldable
from .folding.network import copy_network, switch_to_deploy
from .loading.names import rename_on_loading
from .series_activation import SeriesActivation

# Where the forward functions of plain convolutions are: torch's, and mmcv's for empty batches.
PLAIN = (nn.Conv2d.__module__, 'mmcv.cnn.bricks.wrappers')
# A module, its name for one of its children, and the child's name in the whole network.
Place = Tuple[nn.Module, str, str]


def add_deep_training(
    model: nn.Module,
    norm_cfg: dict = dict(type='BN'),
    skip: Union[str, Sequence[str]] = (),
    inplace: bool = False,
) -> nn.Module:
    """Makes a deep convolution of every convolution of a network (section 3.1).

    The first of the two has the geometry of the one that it replaces, and as many output channels;
    the second is 1x1, of as many groups. Such a pair merges exactly, whatever the kernel size,
    stride, padding or dilation. Norms of the network stay where they are. The weights are fresh:
    this is for networks that are then trained. On maps of 1x1, as in squeeze-and-excitation, the
    norms inside the pairs have a value per image: ``skip`` those layers, or take large batches.

    Args:
        model: Any module. Its linear layers stay as they are.
        norm_cfg: Config of the norms inside the pairs.
        skip: Names of layers to leave as they are, with all that is in them.
        inplace: Whether to change ``model`` itself instead of a copy.

    Returns:
        The network, which ``set_deep_training_lambda``, ``merge_deep_convs``, ``switch_to_deploy``
        and ``DeepTrainingHook`` work on.

    Raises:
        UsageError: naming a convolution that no such pair can replace (transposed, of other than
            two dimensions, with an arithmetic of its own, frozen, or inside a layer that folds
            itself), or if there is none at all; if the network keeps its norms in eval mode
            (``norm_eval=True``, mmdet's default for ResNet).
    """
    model = model if inplace else copy_network(model)
    skip = _names(model, skip)
    places = list(_places(model, _ConvNd, skip))
    if not places:
        raise UsageError(f'{type(model).__name__} has no convolution (any more) to train as two.')
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
    """Makes a series activation of every ReLU on feature maps of a network (section 3.2).

    The network is run once, without arithmetic, to see how many channels each has. A ReLU module
    that is called several times, as in the blocks of ResNet, becomes as many series activations.
    The network must use what its ReLUs return, also those that work in place.

    Args:
        model: Any module that is called with a batch of images.
        act_num: Series number n.
        norm_cfg: Config of the series activations' norms.
        skip: Names of layers to leave as they are, with all that is in them.
        input_shape: Channels, height and width of an image that the network takes.
        inplace: Whether to change ``model`` itself instead of a copy.

    Returns:
        The network. Other activations stay, and ReLUs that are not called in eval mode, or on
        vectors or maps of 1x1.

    Raises:
        UsageError: if the network cannot be run so, or calls no ReLU module on feature maps; naming
            a ReLU among frozen layers, or one whose calls cannot be told from each other; if the
            network keeps its norms in eval mode (``norm_eval=True``, mmdet's default for ResNet).
    """
    model = model if inplace else copy_network(model)
    skip = _names(model, skip)
    channels = _channels_of_calls(model, skip, input_shape)
    if not channels:
        raise UsageError(
            f'{type(model).__name__} calls no nn.ReLU on feature maps (any more): other modules, '
            'and functions, are not replaced.'
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
        network: Config of the network, of any OpenMMLab package.
        deep_training: Whether to give it deep training, by ``add_deep_training``.
        act_num: Series number of ``add_series_activation``; None leaves the ReLUs.
        norm_cfg: Config of the norms that the techniques bring.
        skip: Names of layers to leave as they are.
        input_shape: Channels, height and width of an image that the network takes.
        deploy: Whether to build the deploy form, for weights that are fused already.

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
    """The series activations of a ReLU that its module calls several times, one for each call.

    Args:
        parent: The module that calls them, in the same order at each of its own calls.
        activations: The series activations, in that order.
    """

    def __init__(self, parent: nn.Module, activations: Sequence[nn.Module]) -> None:
        super().__init__(activations)
        self.turn = 0
        _start_turns_with(parent)

    def forward(self, x: Tensor) -> Tensor:
        self.turn += 1
        return self[self.turn - 1](x)


class _ChannelsOfCalls(nn.Module):
    """In the place of a ReLU: notes the channels of each call within a call of its parent."""

    def __init__(self, parent: nn.Module) -> None:
        super().__init__()
        self.turn = -1  # until its parent is called
        # By call; None stands for what is no feature map.
        self.channels: Dict[int, Set[Optional[int]]] = {}
        _start_turns_with(parent)

    def forward(self, x: Tensor) -> Tensor:
        found = x.shape[1] if x.dim() == 4 and x.shape[2:].numel() > 1 else None
        self.channels.setdefault(self.turn, set()).add(found)
        self.turn += 1
        return x


def _start_turns_with(parent: nn.Module) -> None:
    if _start_turns not in parent._forward_pre_hooks.values():
        parent.register_forward_pre_hook(_start_turns)


def _start_turns(parent: nn.Module, args: Any) -> None:
    for child in parent.children():
        if isinstance(child, (_InTurn, _ChannelsOfCalls)):
            child.turn = 0


def _channels_of_calls(
    model: nn.Module, skip: Set[str], input_shape: Sequence[int]
) -> Dict[str, List[int]]:
    """For each ReLU on feature maps, by its name, the channels of its calls in their order."""
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
            f'{type(model).__name__} cannot be run on an image of {tuple(input_shape)}, to see the '
            f'channels of its activations (if it takes others, give input_shape): {error}'
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
        why = 'called on feature maps of other channels each time, or on something else too'
    elif len(channels) > 1 and -1 in channels:
        why = f'called several times, but not by the {type(parent).__name__} that holds it'
    elif len(channels) > 1 and getattr(parent, 'with_cp', False):
        why = 'called several times, and again in the backward pass (with_cp=True)'
    else:
        return
    raise UsageError(f"{name} is {why}: change that, or leave it a ReLU with skip=('{name}',).")


def _check_norms(model: nn.Module, skip: Set[str]) -> None:
    """Refuses a network whose norms, those that the techniques bring too, stay in eval mode."""
    for name, module in model.named_modules():
        skipped = any(f'{name}.'.startswith(f'{other}.') for other in skip)
        if getattr(module, 'norm_eval', False) and not skipped:
            raise UsageError(
                f'{type(module).__name__} has norm_eval=True, so that the norms which the '
                'techniques bring would never have statistics: set norm_eval=False.'
            )


def _check_conv(model: nn.Module, parent: nn.Module, child: str, name: str) -> None:
    """Refuses a convolution that two cannot replace."""
    conv = getattr(parent, child)
    above = ['.'.join(name.split('.')[:depth]) for depth in range(name.count('.') + 1)]
    folding = [n for n in above if hasattr(model.get_submodule(n), 'switch_to_deploy')]
    if folding:
        name = folding[0]
        why = 'folds its convolutions itself (switch_to_deploy)'
    elif 'weight' in parent._parameters:  # as a deformable convolution, whose offsets conv gives
        name = above[-1]
        why = 'computes with what its convolution gives'
    elif (
        not isinstance(conv, nn.Conv2d)
        or type(conv).forward.__module__ not in PLAIN
        or type(conv)._conv_forward is not nn.Conv2d._conv_forward
        or is_parametrized(conv)
        or conv._forward_pre_hooks  # as weight norm of old style has
    ):
        why = 'does not merge with a 1x1 convolution after it'
    elif not conv.weight.requires_grad:
        why = 'is frozen (frozen_stages), and would stay random as two'
    else:
        return
    kind = type(model.get_submodule(name)).__name__
    mend = f"leave it as it is with skip=('{name}',)" if name else 'give another network'
    raise UsageError(f'{name or "the network"} is a {kind}, which {why}: {mend}.')


def _make_deep(conv: nn.Conv2d, norm_cfg: dict) -> DeepConv:
    deep = DeepConv(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        conv.padding_mode,
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
