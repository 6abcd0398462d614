"""λ, merging and fusing over whole networks: detectors, classifiers, any ``nn.Module``."""

import copy
from typing import Any, Callable, Dict, Iterator, Mapping, Optional, Tuple

import torch
from mmengine.model import BaseAveragedModel, is_model_wrapper
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .deep_conv import DeepConv, form_in
from .series_activation import SeriesActivation


def set_deep_training_lambda(model: nn.Module, value: float) -> None:
    """Sets λ (equation 1) of every deep convolution inside ``model``.

    Args:
        model: Any module; wrapped (DDP, EMA) models too.
        value: λ, from 0 (ReLU) to 1 (identity).

    Raises:
        UsageError: if λ is out of range, or below 1 where the two convolutions are merged already.
    """
    for conv in deep_convs(model):
        conv.lambda_ = value


def merge_deep_convs(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Folds the pair of every deep convolution into one, still trainable (section 3.1).

    Args:
        model: Any module; of a wrapped (DDP, EMA) model the network inside is taken.
        inplace: Whether to change ``model`` itself instead of a copy.

    Returns:
        The network in merged form, in the mode (training or eval) that it was in.

    Raises:
        UsageError: if λ is not 1 in any deep convolution; nothing is changed then.
    """
    model = _checked_network(model, inplace)
    for conv in list(deep_convs(model)):
        conv.merge()
    return model


def switch_to_deploy(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Folds everything that can be folded, for inference: one convolution per layer.

    Every module with a method ``switch_to_deploy`` is switched, those of other packages too.

    Args:
        model: Any module in any form; of a wrapped (DDP, EMA) model the network inside is taken.
        inplace: Whether to change ``model`` itself instead of a copy.

    Returns:
        The network in deploy form and eval mode. It computes what ``model.eval()`` does.

    Raises:
        UsageError: if λ is not 1 in any deep convolution; nothing is changed then.
    """
    model = _checked_network(model, inplace)
    for module in list(model.modules()):
        if hasattr(module, 'switch_to_deploy'):
            module.switch_to_deploy()
    model.eval()  # which backbones of mmpretrain answer with None
    return model


def deep_convs(model: nn.Module) -> Iterator[DeepConv]:
    """Every deep convolution inside ``model``."""
    return (conv for _, conv in named_deep_convs(model))


def named_deep_convs(model: nn.Module) -> Iterator[Tuple[str, DeepConv]]:
    """Every deep convolution inside ``model``, with what its keys in a state dict begin with."""
    for name, module in model.named_modules():
        if isinstance(module, DeepConv):
            yield f'{name}.', module


def merge_weights(model: nn.Module, state_dict: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """A copy of a state dict, in the deep form or not, with what ``model`` holds merged merged.

    Args:
        model: A network whose deep convolutions are in any form.
        state_dict: Weights of it.
    """
    state_dict = dict(state_dict)
    for prefix, conv in named_deep_convs(model):
        conv.merge_weights(state_dict, prefix)
    return state_dict


def form_of(model: nn.Module, state_dict: Mapping[str, Tensor]) -> Optional[str]:
    """The form ('deep', 'merged' or 'deploy') that weights of ``model`` are in.

    None if no layer of ``model``, which may be in any form itself, is among them, or if it has
    series activations alone, and they are not fused.
    """
    forms = (form_in(state_dict, prefix) for prefix, _ in named_deep_convs(model))
    form = next(filter(None, forms), None)
    activations = [  # whether each has its norm
        f'{name}.norm.running_var' in state_dict
        for name, module in model.named_modules()
        if isinstance(module, SeriesActivation) and f'{name}.conv.weight' in state_dict
    ]
    # Without a last norm a deep convolution is the same merged and fused: the activations tell.
    if form not in (None, 'deploy') or not activations:
        return form
    if not activations[0]:
        return 'deploy'
    return form and 'merged'


def unwrap(model: nn.Module) -> nn.Module:
    """The bare network inside DDP and EMA wrappers."""
    while is_model_wrapper(model) or isinstance(model, BaseAveragedModel):
        model = model.module
    return model


def check_fused(model: nn.Module, fused: nn.Module, tolerance: float = 1e-4) -> None:
    """Compares each fused layer with the layers that it was made of, on random input in float64.

    Layer by layer and in double precision, so that neither rounding nor the network's own
    amplification of it hides or fakes an error.

    Args:
        model: The network before fusing.
        fused: The network after it.
        tolerance: Largest difference allowed, relative to the largest output.

    Raises:
        RuntimeError: naming the first layer that computes something else.
    """
    fused_modules = dict(fused.named_modules())
    generator = torch.Generator().manual_seed(0)
    for name, module in unwrap(model).named_modules():
        if not isinstance(module, (DeepConv, SeriesActivation)):
            continue
        before = copy.deepcopy(module).double().cpu().eval()
        after = copy.deepcopy(fused_modules[name]).double().cpu().eval()
        size = [8 + d * (k - 1) for d, k in zip(after.conv.dilation, after.conv.kernel_size)]
        x = torch.randn(2, after.conv.in_channels, *size, dtype=torch.float64, generator=generator)
        with torch.no_grad():
            expected, got = before(x), after(x)
        error, scale = (got - expected).abs().max().item(), expected.abs().max().item()
        if not error <= tolerance * scale:
            raise RuntimeError(
                f'{name}: the fused layer differs from the trained one by {error:.2g}, '
                f'where its outputs go up to {scale:.2g}.'
            )


def _checked_network(model: nn.Module, inplace: bool) -> nn.Module:
    model = unwrap(model)
    for conv in deep_convs(model):
        conv.check_mergeable()
    return model if inplace else copy_network(model)


def copy_network(model: nn.Module) -> nn.Module:
    """A deep copy, also of networks that hold results of an earlier call."""
    with _DetachingCopies():
        return copy.deepcopy(model)


class _DetachingCopies(TorchFunctionMode):
    """Within it, deepcopy takes what torch refuses to copy: results that hang on a graph.

    Some heads of mmdet remember those of their last forward pass.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: Optional[dict] = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **kwargs or {})
