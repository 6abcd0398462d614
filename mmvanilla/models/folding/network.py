"""λ, merging and fusing of whole networks: detectors, classifiers, any ``nn.Module``."""

import copy
from typing import Any, Callable, Iterator, Optional

import torch
from mmengine.model import BaseAveragedModel, is_model_wrapper
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .foldable import FORMS, Foldable, named_foldables


def set_deep_training_lambda(model: nn.Module, value: float) -> None:
    """Sets λ (equation 1) of every deep convolution inside ``model``.

    Args:
        model: Any module, wrapped (DDP, EMA) or not.
        value: λ, from 0 (ReLU) to 1 (identity).

    Raises:
        UsageError: if λ is out of range, or below 1 where a pair is already merged.
    """
    for conv in deep_convs(model):
        conv.lambda_ = value


def merge_deep_convs(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Merges the pair of every deep convolution into one, which can be trained (section 3.1).

    Args:
        model: Any module in any form. If it is wrapped (DDP, EMA), the network inside is used.
        inplace: Whether to change ``model`` itself instead of a copy.

    Returns:
        The network in merged form, in the mode (training or eval) that it was in.

    Raises:
        UsageError: if λ is not 1 in some deep convolution; then nothing is changed.
    """
    model = _checked_network(model, inplace)
    for conv in list(deep_convs(model)):
        conv.fold('merged')
    return model


def switch_to_deploy(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Fuses a network for inference: one convolution per layer, without norms.

    It calls the method ``switch_to_deploy`` of every module that has one, also of other packages.

    Args:
        model: Any module in any form. If it is wrapped (DDP, EMA), the network inside is used.
        inplace: Whether to change ``model`` itself instead of a copy.

    Returns:
        The network in deploy form and eval mode. It computes the same as ``model.eval()``.

    Raises:
        UsageError: if λ is not 1 in some deep convolution; then nothing is changed.
    """
    model = _checked_network(model, inplace)
    for module in list(model.modules()):
        if hasattr(module, 'switch_to_deploy'):
            module.switch_to_deploy()
    model.eval()  # not "return model.eval()", which is None for some backbones of mmpretrain
    return model


def deep_convs(model: nn.Module) -> Iterator[Foldable]:
    """Every deep convolution inside ``model``, in any form."""
    layers = (layer for _, layer in named_foldables(model) if 'deep' in layer.forms)
    return iter(dict.fromkeys(layers))  # each once


def form_of(model: nn.Module) -> Optional[str]:
    """The earliest form of all deep convolutions inside ``model``; None if there are none."""
    forms = {layer.form for layer in deep_convs(model)}
    return next((form for form in FORMS if form in forms), None)


def unwrap(model: nn.Module) -> nn.Module:
    """The bare network inside DDP and EMA wrappers."""
    while is_model_wrapper(model) or isinstance(model, BaseAveragedModel):
        model = model.module
    return model


def check_fused(model: nn.Module, fused: nn.Module, tolerance: float = 1e-4) -> None:
    """Compares each fused layer with the layers that it replaces, on random input in float64.

    It does so layer by layer and in double precision, so that neither rounding errors nor their
    growth from layer to layer can hide or fake a difference.

    Args:
        model: The network before fusing.
        fused: The network after it.
        tolerance: The largest difference allowed, relative to the largest output. For weights in
            half precision it is twice their rounding error.

    Raises:
        RuntimeError: naming the first layer whose outputs differ.
    """
    fused_modules = dict(fused.named_modules(remove_duplicate=False))
    generator = torch.Generator().manual_seed(0)
    for prefix, layer in named_foldables(unwrap(model)):
        name = prefix.rstrip('.')
        before, after = (
            copy.deepcopy(each).cpu().double().eval() for each in (layer, fused_modules[name])
        )
        x = before.random_input(generator)
        with torch.no_grad():
            expected, got = before(x), after(x)
        rounding = max(torch.finfo(p.dtype).eps for p in layer.parameters())
        error, scale = (got - expected).abs().max().item(), expected.abs().max().item()
        if not error <= max(tolerance, 2 * rounding) * scale:
            raise RuntimeError(
                f'{name}: the outputs of the fused layer differ from those of the trained one by '
                f'{error:.2g}; the largest output is {scale:.2g}.'
            )


def _checked_network(model: nn.Module, inplace: bool) -> nn.Module:
    model = unwrap(model)
    for conv in deep_convs(model):
        conv.check_foldable()
    return model if inplace else copy_network(model)


def copy_network(model: nn.Module, device: Optional[str] = None) -> nn.Module:
    """A deep copy, even of networks that hold results of an earlier call.

    Args:
        model: Any module.
        device: Where its parameters and buffers are to be; by default where they are.
    """
    memo = {}  # what deepcopy takes for copied
    if device is not None:
        for param in model.parameters():
            memo[id(param)] = nn.Parameter(
                param.detach().to(device, copy=True), param.requires_grad
            )
        for buffer in model.buffers():
            memo[id(buffer)] = buffer.detach().to(device, copy=True)
    with _DetachingCopies():
        return copy.deepcopy(model, memo)


class _DetachingCopies(TorchFunctionMode):
    """Lets deepcopy copy tensors of an autograd graph, which torch refuses, by detaching them.

    Some heads of mmdet keep such results of their last forward pass.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: Optional[dict] = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **kwargs or {})
