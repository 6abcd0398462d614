"""Which layers of a run's model the deep training schedule is for."""

from contextlib import contextmanager
from difflib import SequenceMatcher
from functools import partial
from itertools import takewhile
from typing import Dict, Iterable, Iterator, List, Set, Tuple

from mmengine.hooks import EMAHook
from mmengine.model import BaseAveragedModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import nn

from ..models.folding.foldable import Foldable, named_foldables
from ..models.folding.network import unwrap

Layers = Dict[str, Foldable]  # by the prefixes of their keys in the model's state dict


def ema_hooks(runner: Runner) -> List[EMAHook]:
    """The hooks that keep an averaged copy of the runner's model, or of a part of it."""
    return [h for h in runner.hooks if isinstance(getattr(h, 'ema_model', None), BaseAveragedModel)]


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
    with _in_training(runner.model):
        layers = {
            prefix: layer
            for prefix, layer in named_foldables(unwrap(runner.model))
            if layer.training and (layer.is_trained or not any(True for _ in layer.parameters()))
        }

    def is_held(params: Iterable[nn.Parameter]) -> bool:
        return any(id(param) in held for param in params)

    found = {
        prefix: layer
        for prefix, layer in layers.items()
        if is_held([*layer.parameters(), *dict(layer.replaced())])
    }
    # Sharded training holds parameters of its own instead.
    return found if found or is_held(runner.model.parameters()) else layers


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
        if prefix in sources:
            return prefix in trained
        return bool(sources) and max(sources, key=partial(_likeness, prefix)) in trained

    return {prefix: layer for prefix, layer in layers.items() if is_annealed(prefix)}


def foldables_of_run(runner: Runner) -> Iterator[Tuple[str, Foldable]]:
    """The layers that fold, of the run's model and then of its averaged copies.

    A layer of a copy has the prefix of the layer that it averages.
    """
    network = unwrap(runner.model)
    yield from named_foldables(network)
    names = {module: name and f'{name}.' for name, module in network.named_modules()}
    for hook in ema_hooks(runner):
        prefix = names.get(unwrap(getattr(hook, 'src_model', network)), '')
        for name, layer in named_foldables(unwrap(hook.ema_model)):
            yield prefix + name, layer


def averaged_models(runner: Runner) -> List[BaseAveragedModel]:
    """Everything in a run that averages the parameters of the model or of parts of it."""
    networks = [runner.model, *(hook.ema_model for hook in ema_hooks(runner))]
    modules = (module for network in networks for module in network.modules())
    return [module for module in modules if isinstance(module, BaseAveragedModel)]


def _deep_convs(network: nn.Module) -> Layers:
    return {p: layer for p, layer in named_foldables(network) if 'deep' in layer.forms}


@contextmanager
def _in_training(model: nn.Module) -> Iterator[None]:
    """Puts a model into the mode that the loop will: frozen modules stay in eval mode."""
    modes = {module: module.training for module in model.modules()}
    model.train()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _likeness(one: str, other: str) -> Tuple[int, float]:
    """How many parts at the end of two names are the same, and how alike they are in all."""
    pairs = zip(one.split('.')[::-1], other.split('.')[::-1])
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return same, SequenceMatcher(None, one, other).ratio()
