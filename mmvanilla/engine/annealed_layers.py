"""Which layers of a run's model the deep training schedule is for."""

from itertools import takewhile
from typing import Dict, List, Set

from mmengine.hooks import EMAHook
from mmengine.model import BaseAveragedModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import nn

from ..models.folding.foldable import Foldable, named_foldables
from ..models.folding.network import unwrap

Layers = Dict[str, Foldable]  # by the prefixes of their keys in the model's state dict


def ema_hooks(runner: Runner) -> List[EMAHook]:
    """The hooks that keep an averaged copy of the runner's model."""
    return [hook for hook in runner.hooks if hasattr(hook, 'ema_model')]


def optim_wrappers(runner: Runner) -> List[OptimWrapper]:
    """The optimizer wrappers of a run, each with its optimizer; none before they are built."""
    wrapper = runner.optim_wrapper
    wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    return [each for each in wrappers if hasattr(each, 'optimizer')]


def trained_layers(runner: Runner) -> Layers:
    """The layers that fold and that this run trains.

    They are in training mode, and an optimizer holds parameters of them that require gradients.
    So frozen stages and teachers are not among them.
    """
    groups = [g for w in optim_wrappers(runner) for g in w.optimizer.param_groups]
    held = {id(param) for group in groups for param in group['params']}
    runner.model.train()  # as the loop does before each epoch: frozen modules stay in eval mode
    layers = {
        prefix: layer
        for prefix, layer in named_foldables(unwrap(runner.model))
        if layer.training and (layer.is_trained or not any(True for _ in layer.parameters()))
    }
    found = {
        prefix: layer
        for prefix, layer in layers.items()
        if any(id(param) in held for param in [*layer.parameters(), *dict(layer.replaced())])
    }
    return found or layers  # sharded training holds parameters of its own instead


def averages_in_model(runner: Runner) -> Set[str]:
    """The prefixes of deep convolutions that average others inside the model, where it is known.

    They are in mmengine's averaged models, such as momentum encoders, and in the teacher of mmdet's
    MeanTeacherHook.
    """
    network = unwrap(runner.model)
    places = [f'{n}.' for n, m in network.named_modules() if isinstance(m, BaseAveragedModel)]
    for hook in runner.hooks:
        if 'MeanTeacherHook' in [each.__name__ for each in type(hook).__mro__]:
            places.append('teacher.')
    return {prefix for prefix in _deep_convs(network) if prefix.startswith(tuple(places))}


def annealed_layers(runner: Runner, averages: Set[str]) -> Layers:
    """The deep convolutions that this run trains, and those that average these.

    Args:
        runner: The runner.
        averages: The prefixes of deep convolutions that average others. Each is taken for the
            average of the one whose name ends most like its own.
    """
    trained = trained_layers(runner)
    layers = _deep_convs(unwrap(runner.model))
    sources = [prefix for prefix in layers if prefix not in averages]

    def is_annealed(prefix: str) -> bool:
        alike = {source: _common_end(source, prefix) for source in sources}
        best = [source for source in sources if alike[source] == max(alike.values())]
        return any(source in trained for source in ([prefix] if prefix in sources else best))

    return {prefix: layer for prefix, layer in layers.items() if is_annealed(prefix)}


def copies_of_model(runner: Runner) -> List[nn.Module]:
    """The run's model and the averaged copies of all of it, without wrappers."""
    return [unwrap(model) for model in (runner.model, *(h.ema_model for h in ema_hooks(runner)))]


def averaged_models(runner: Runner) -> List[BaseAveragedModel]:
    """Everything in a run that averages the parameters of the model or of parts of it."""
    averages = [hook.ema_model for hook in ema_hooks(runner)]
    for network in copies_of_model(runner):
        averages += [each for each in network.modules() if isinstance(each, BaseAveragedModel)]
    return averages


def _deep_convs(network: nn.Module) -> Layers:
    return {p: layer for p, layer in named_foldables(network) if 'deep' in layer.forms}


def _common_end(one: str, other: str) -> int:
    """How many parts at the end of two names are the same."""
    pairs = zip(one.split('.')[::-1], other.split('.')[::-1])
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
