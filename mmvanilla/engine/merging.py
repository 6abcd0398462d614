"""Merging the deep convolutions of a network during training, with its optimizers and copies."""

import gc
import inspect
import logging
from typing import Collection, Dict, Iterable, Optional

import torch
from mmengine.dist import broadcast
from mmengine.logging import print_log
from mmengine.model import MMSeparateDistributedDataParallel, is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Optimizer

from ..errors import UsageError
from ..models.deep_conv import DeepConv
from ..models.folding.foldable import Foldable
from ..models.folding.network import unwrap
from .annealed_layers import (
    averaged_models,
    foldables_of_run,
    optim_wrappers,
    trained_layers,
)


def check_run(runner: Runner) -> None:
    """Raises UsageError if the model's wrapper or an optimizer cannot follow a merge."""
    model = runner.model
    sharded = any(type(param).__name__ == 'DTensor' for param in model.parameters())
    if sharded or (
        is_model_wrapper(model)
        and (
            not isinstance(model, DistributedDataParallel)
            or isinstance(model, MMSeparateDistributedDataParallel)
        )
    ):
        raise UsageError(
            f'merging does not work in {type(model).__name__}: use MMDistributedDataParallel, or '
            'train in deep form (without merge=True, from weights that are not merged).'
        )
    owners = {}
    for prefix, layer in trained_layers(runner).items():
        for param in layer.parameters():
            other = owners.setdefault(param, layer)
            if other is not layer:
                raise UsageError(
                    f'merging would separate the parameters that {prefix.rstrip(".")} shares with '
                    'another layer: train in deep form (without merge=True).'
                )
    for wrapper in optim_wrappers(runner):
        optimizer = wrapper.optimizer
        if hasattr(optimizer, 'consolidate_state_dict'):
            why = 'spreads its state over processes'
        else:
            why = _try_merging(optimizer)
        if why:
            raise UsageError(
                f'merging does not work with {type(optimizer).__name__}, which {why}: use another '
                'optimizer, or train in deep form (without merge=True, from weights that are not '
                'merged).'
            )


def can_merge_now(runner: Runner) -> bool:
    """Whether no gradients are being accumulated, which a merge would lose."""
    return all(wrapper.should_update() for wrapper in optim_wrappers(runner))


def merge_in_run(runner: Runner, prefixes: Collection[str]) -> None:
    """Merges layers of a run's model and averaged copies at λ = 1; its optimizers and DDP follow.

    The model and each copy, which is merged with its own statistics, compute the same in eval mode
    before and after. In the optimizer the merged parameters replace those of the first
    convolutions, with their groups, learning rates and weight decays; they start without momenta.
    Everything else in the optimizer stays as it was.

    Args:
        runner: The runner.
        prefixes: The prefixes of the deep convolutions to merge. Some may already be merged in the
            model or its copies.
    """
    fold_in_run(runner, dict.fromkeys(prefixes, 'merged'))


def fold_in_run(runner: Runner, forms: Dict[str, str]) -> None:
    """Brings layers of a run's model and averaged copies to forms, as ``merge_in_run`` does.

    Args:
        runner: The runner.
        forms: The form of each layer, by its prefix.
    """
    if any(prefix in forms for prefix in trained_layers(runner)):
        check_run(runner)
    layers = [(layer, forms[p]) for p, layer in foldables_of_run(runner) if p in forms]
    for layer, _ in layers:
        layer.check_foldable()
    # Every process has the statistics of its own images; checkpoints have those of the first.
    for layer, _ in layers:
        for buffer in layer.buffers() if layer.is_deep else ():
            broadcast(buffer)
    for layer, form in layers:
        layer.fold(form)
    for wrapper in optim_wrappers(runner):
        _replace([layer for layer, _ in layers], wrapper.optimizer)
    for layer, _ in layers:
        layer.let_go()
    for each in averaged_models(runner):  # each keeps a table of its network's parameters
        each.avg_parameters = (
            each.module.state_dict()
            if each.update_buffers
            else dict(each.module.named_parameters())
        )
    if is_model_wrapper(runner.model):
        _wrap_anew(runner)


def _wrap_anew(runner: Runner) -> None:
    """Wraps the model as the runner, or its strategy, did."""
    # DDP holds its original parameters until it is garbage-collected.
    network = runner.model = unwrap(runner.model)
    strategy = getattr(runner, 'strategy', None)  # FlexibleRunner's
    if strategy is None:
        gc.collect()
        runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), network)
        runner._maybe_compile('train_step')
        return
    strategy.model = None
    gc.collect()
    options = runner._compile if isinstance(runner._compile, dict) else {}
    options = {'target': 'train_step', **options} if runner._compile else False
    strategy.model = strategy.compile_model(strategy._wrap_model(network), options)
    runner.model = strategy.model


def _replace(layers: Iterable[Foldable], optimizer: Optimizer) -> None:
    """Replaces parameters that an optimizer holds with those of the folded layers."""
    # By id: == compares tensors element by element.
    held = {id(param) for group in optimizer.param_groups for param in group['params']}
    successors = {}
    for layer in layers:
        for old, new in layer.replaced():
            if id(old) in held:  # the first that is held has the successor, such as a frozen pair's
                taken = any(new is each for each in successors.values())
                successors[id(old)] = None if taken else new
    for group in optimizer.param_groups:
        names = group.get('param_names', [''] * len(group['params']))
        kept, fresh = [], {}
        for param, name in zip(group['params'], names):
            new = successors.get(id(param), param)
            if new is not param:
                state = optimizer.state.pop(param, {})
                if new is not None:
                    fresh[new] = state
                    name = name.replace('.conv1.', '.conv.').replace('.conv2.', '.conv.')
            if new is not None:
                kept.append((new, name))
        # A group that ends up empty stays: schedulers know groups by their index.
        group['params'] = [param for param, _ in kept]
        if 'param_names' in group:
            group['param_names'] = [name for _, name in kept]
        if not any(param in optimizer.state for param in group['params']):
            group.pop('step', None)  # mmpretrain's Lamb counts steps per group
        optimizer.state.update(_first_state(optimizer, group, fresh))


def _first_state(
    optimizer: Optimizer, group: dict, fresh: Dict[nn.Parameter, dict]
) -> Dict[nn.Parameter, dict]:
    """What an optimizer knows of new parameters before its first step; most know nothing.

    Args:
        optimizer: The optimizer.
        group: The group of the parameters.
        fresh: The parameters, each with the state of the one that it replaces.
    """
    if isinstance(optimizer, SGD) and group.get('fused'):  # wants momenta of all or of none
        return {
            param: dict(momentum_buffer=torch.zeros_like(param))
            for param, state in fresh.items()
            if state.get('momentum_buffer') is not None
        }
    like = _make_like(optimizer, group, list(fresh)) if fresh else None
    return {} if like is None else dict(like.state)


def _make_like(optimizer: Optimizer, group: dict, params: list) -> Optional[Optimizer]:
    """A new optimizer of the same kind, with a group like ``group``; None if it wants more."""
    group = {**group, 'params': params}
    group.pop('param_names', None)
    try:
        taken = inspect.signature(type(optimizer)).parameters
        settings = {name: value for name, value in optimizer.defaults.items() if name in taken}
        return type(optimizer)([group], **settings)
    except Exception:  # optimizers of users are made in many ways
        return None


def _try_merging(optimizer: Optimizer) -> str:
    """Merges a tiny deep convolution under an optimizer of the same kind.

    Returns:
        Why that fails; '' if it does not.
    """
    group = dict(next(group for group in optimizer.param_groups if group['params']))
    like = group['params'][0]
    if 'lr' in group:  # which may be 0 now
        lr = group['lr']
        group['lr'] = torch.full_like(lr, 0.1) if isinstance(lr, Tensor) else 0.1
    with torch.random.fork_rng(devices=[]):  # the run's random numbers stay the same
        layers = nn.Sequential(DeepConv(2, 2), DeepConv(2, 2)).to(like.device, like.dtype)
        twin = _make_like(optimizer, group, list(layers.parameters()))
        if twin is None:
            print_log(
                f'Whether {type(optimizer).__name__} can go on after a merge cannot be tried: look '
                'whether it still learns when λ is 1.',
                'current',
                logging.WARNING,
            )
            return ''
        try:
            for _ in range(2):
                _step(twin, layers)
            layers[0].fold('merged')
            _replace([layers[0]], twin)
            layers[0].let_go()
            before = layers[0].conv.weight.detach().clone()
            _step(twin, layers)
        except Exception as error:  # optimizers fail in many ways
            return f'does not go on afterwards ({error})'
    moved = not torch.equal(layers[0].conv.weight, before)
    return '' if moved else 'does not change new parameters'


def _step(optimizer: Optimizer, layers: nn.Module) -> None:
    for param in layers.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
