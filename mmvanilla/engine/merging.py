"""Merging the deep convolutions of a network while it trains, with its optimizers and copies."""

import gc
from typing import Iterable, List

from mmengine.dist import all_reduce_params
from mmengine.hooks import EMAHook
from mmengine.model import (
    BaseAveragedModel,
    MMSeparateDistributedDataParallel,
    is_model_wrapper,
)
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ..errors import UsageError
from ..models.reparameterize import deep_convs, merge_deep_convs, unwrap


def ema_hooks(runner: Runner) -> List[EMAHook]:
    """The hooks that keep an averaged copy of the runner's model."""
    return [hook for hook in runner.hooks if isinstance(hook, EMAHook)]


def check_run(runner: Runner) -> None:
    """Raises UsageError if the model's wrapper or an optimizer cannot follow a merge."""
    model = runner.model
    if is_model_wrapper(model) and (
        not isinstance(model, DistributedDataParallel)
        or isinstance(model, MMSeparateDistributedDataParallel)
    ):
        raise UsageError(
            f'merge=True does not work in {type(model).__name__}: use MMDistributedDataParallel, '
            'or leave merge out.'
        )
    for optimizer in _optimizers(runner):
        if hasattr(optimizer, 'consolidate_state_dict'):
            raise UsageError(
                f'merge=True does not work with {type(optimizer).__name__}, which shares its '
                'parameters among processes: use the optimizer itself, or leave merge out.'
            )


def merge_in_run(runner: Runner) -> None:
    """Brings the model of a run that is at λ = 1 to merged form, and all that belongs to it.

    The averaged copies are merged by their own statistics, and the function that each of them and
    the model computes in eval mode stays the same. The merged parameters take the place of the
    first convolutions' in the optimizer: their groups, learning rates and weight decays; they start
    without momenta. Everything else in the optimizer stays as it was.
    """
    network = unwrap(runner.model)
    averaged = [hook.ema_model for hook in ema_hooks(runner)]
    for model in (network, *averaged):
        # Every process has statistics of its own images.
        all_reduce_params((b for conv in deep_convs(model) for b in conv.buffers()), op='mean')
    _merge_with_optimizers(network, _optimizers(runner))
    for model in averaged:
        merge_deep_convs(model, inplace=True)
        _renew_table(model)
    if is_model_wrapper(runner.model):
        # DDP keeps the parameters of its making; it lets go of them when it is collected.
        runner.model = network
        gc.collect()
        runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), network)
        runner._maybe_compile('train_step')  # as the runner did with the wrapper before


def _optimizers(runner: Runner) -> List[Optimizer]:
    wrapper = runner.optim_wrapper
    wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    return [each.optimizer for each in wrappers]


def _merge_with_optimizers(network: nn.Module, optimizers: Iterable[Optimizer]) -> None:
    """Merges ``network`` in place, and replaces the parameters that this makes and takes away."""
    before = [(conv, dict(conv.named_parameters())) for conv in deep_convs(network) if conv.is_deep]
    merge_deep_convs(network, inplace=True)
    replaced, gone = {}, set()  # by identity: tensors are compared element by element
    for conv, old in before:
        new = dict(conv.named_parameters())
        for name, param in old.items():
            if new.get(name) is not param:
                gone.add(id(param))
        for kind in ('weight', 'bias'):
            replaced[id(old[f'conv1.{kind}'])] = new[f'conv.{kind}']
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for param in group['params']:
                if id(param) in gone:
                    optimizer.state.pop(param, None)
            # A group may end up empty. It stays: schedulers know groups by their number.
            group['params'] = [
                replaced.get(id(param), param)
                for param in group['params']
                if id(param) not in gone or id(param) in replaced
            ]
            if not any(param in optimizer.state for param in group['params']):
                group.pop('step', None)  # mmpretrain's Lamb counts the steps of a group


def _renew_table(averaged: BaseAveragedModel) -> None:
    """Makes an averaged model anew what it keeps of its network: a table of parameters."""
    network = averaged.module
    averaged.avg_parameters = (
        network.state_dict() if averaged.update_buffers else dict(network.named_parameters())
    )
