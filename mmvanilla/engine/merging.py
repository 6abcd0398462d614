"""Merging the deep convolutions of a network during training, with its optimizers and copies."""

import gc
from typing import Collection, Iterable, List, Optional

from mmengine.dist import all_reduce_params
from mmengine.hooks import EMAHook
from mmengine.model import MMSeparateDistributedDataParallel, is_model_wrapper
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ..errors import UsageError
from ..models.folding.foldable import Foldable, named_foldables
from ..models.folding.network import unwrap


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
            f'merging does not work in {type(model).__name__}: use MMDistributedDataParallel, or '
            'train in deep form (without merge=True, from weights that are not merged).'
        )
    for optimizer in _optimizers(runner):
        if hasattr(optimizer, 'consolidate_state_dict'):
            raise UsageError(
                f'merging does not work with {type(optimizer).__name__}, which spreads its '
                'state over processes: use an ordinary optimizer, or train in deep form '
                '(without merge=True, from weights that are not merged).'
            )


def merge_in_run(runner: Runner, prefixes: Optional[Collection[str]] = None) -> None:
    """Merges a run's model and averaged copies at λ = 1; its optimizers and DDP follow.

    The model and each copy, which is merged with its own statistics, compute the same in eval mode
    before and after. In the optimizer the merged parameters replace those of the first
    convolutions, with their groups, learning rates and weight decays; they start without momenta.
    Everything else in the optimizer stays as it was.

    Args:
        runner: The runner.
        prefixes: The prefixes of the deep convolutions to merge; by default all. Some may already
            be merged in the model or its copies.
    """
    check_run(runner)
    network = unwrap(runner.model)
    averaged = [hook.ema_model for hook in ema_hooks(runner)]
    convs = []
    for model in (network, *(each.module for each in averaged)):
        convs += [
            (model, conv)
            for prefix, conv in named_foldables(model)
            if 'deep' in conv.forms and (prefixes is None or prefix in prefixes)
        ]
    for _, conv in convs:
        conv.check_foldable()
    # Every process has the statistics of its own images.
    all_reduce_params((b for _, conv in convs if conv.is_deep for b in conv.buffers()), op='mean')
    for _, conv in convs:
        conv.fold('merged')
    _replace_in_optimizers([conv for model, conv in convs if model is network], _optimizers(runner))
    for _, conv in convs:
        conv.let_go()
    for each in averaged:  # each keeps a table of its network's parameters
        each.avg_parameters = (
            each.module.state_dict()
            if each.update_buffers
            else dict(each.module.named_parameters())
        )
    if is_model_wrapper(runner.model):
        # DDP holds its original parameters until it is garbage-collected.
        runner.model = network
        gc.collect()
        runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), network)
        runner._maybe_compile('train_step')  # as the runner did with the wrapper before


def _optimizers(runner: Runner) -> List[Optimizer]:
    wrapper = runner.optim_wrapper
    wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    return [each.optimizer for each in wrappers]


def _replace_in_optimizers(convs: Iterable[Foldable], optimizers: Iterable[Optimizer]) -> None:
    """Replaces parameters that optimizers hold with those of the merged convolutions."""
    # By id: == compares tensors element by element.
    successors = {id(old): new for conv in convs for old, new in conv.replaced()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for param in group['params']:
                if id(param) in successors:
                    optimizer.state.pop(param, None)
            # A group that ends up empty stays: schedulers know groups by their index.
            params = [successors.get(id(param), param) for param in group['params']]
            group['params'] = [param for param in params if param is not None]
            if not any(param in optimizer.state for param in group['params']):
                group.pop('step', None)  # mmpretrain's Lamb counts steps per group
