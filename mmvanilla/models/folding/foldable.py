"""The interface of layers that fold, and how weights of any form load into them in any program."""

import copy
import gc
import re
import weakref
from typing import Any, Dict, Iterator, List, Mapping, Optional, Set, Tuple

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ...checkpoint.numbers import NUMBERS, check_numbers
from ...errors import UsageError
from .arithmetic import part, take

# At λ = 1 each form computes what the one before it does.
FORMS = ('deep', 'merged', 'deploy')
Mismatches = Dict[str, List[str]]

# Weak references to the parameters that a layer had in earlier forms, each with what replaced it.
# They are not in the layer itself, so that its copies and pickles do not have them.
_replaced: 'weakref.WeakKeyDictionary' = weakref.WeakKeyDictionary()


def as_graph(module: nn.Module) -> nn.Module:
    """What ``torch.jit.script`` compiles instead of a module: what the module runs now."""
    return torch.fx.symbolic_trace(module)


class Foldable(nn.Module):
    """A layer that is built in one of ``forms`` and takes weights in any of them.

    Weights in an earlier form are folded when they are loaded, if their λ is 1. For weights in a
    later form the layer itself takes that form. After that, training raises an error in deploy
    form, or while an optimizer still holds parameters that the layer had before.
    """

    forms: Tuple[str, ...] = FORMS
    taken_form: Optional[str] = None  # the form that the layer took from weights, if it did
    rebuilt = False  # whether an optimizer may hold parameters of an earlier form
    lambda_ = 1.0  # equation 1
    is_deep = False  # whether it is in deep form, in which λ may be below 1
    __prepare_scriptable__ = as_graph

    def form_in(self, state_dict: Mapping[str, Tensor], prefix: str = '') -> Optional[str]:
        """The form of this layer's weights, whose keys begin with ``prefix``, or None."""
        raise NotImplementedError

    def fold_weights(self, state_dict: Dict[str, Tensor], prefix: str, form: str) -> None:
        """Folds weights of this layer to ``form``, in place, unless they are in it or a later one.

        It does not check λ.
        """
        raise NotImplementedError

    def keys_in(self, form: str) -> Set[str]:
        """The keys that this layer's weights must have in a form; they end with ``NUMBERS``."""
        raise NotImplementedError

    def build_form(self, form: str) -> None:
        """Replaces the layers inside with those of a later form, to load weights into."""
        raise NotImplementedError

    def explain_mismatch(self, weights: Mapping[str, Tensor]) -> Optional[str]:
        """Why weights of this layer do not fit it, and how to fix that; None if they may fit.

        Keys and shapes that do not match are reported elsewhere.
        """
        return None

    def random_input(self, generator: torch.Generator) -> Tensor:
        """A small batch of feature maps in float64, (2, C_in, H, W)."""
        conv = next(m for m in self.modules() if isinstance(m, nn.Conv2d))
        size = [8 + d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size)]
        return torch.randn(2, conv.in_channels, *size, dtype=torch.float64, generator=generator)

    @property
    def form(self) -> str:
        """The form that the layer is in."""
        return self.form_in(self._effective_weights())

    @torch.no_grad()
    def _effective_weights(self) -> Dict[str, Tensor]:
        """The state dict, with the weights that pruned or parametrized layers really use."""
        modes = {module: module.training for module in self.modules()}
        self.eval()  # spectral norms iterate in training, even if their weight is only read
        for module in modes:
            for hook in module._forward_pre_hooks.values():
                if type(hook).__module__.startswith('torch.nn.utils.'):
                    hook(module, ())  # it computes the weight before each call
        weights = dict(self.state_dict())
        for name, module in self.named_children():
            for kind in ('weight', 'bias'):
                value = getattr(module, kind, None)
                if isinstance(value, Tensor):
                    weights[f'{name}.{kind}'] = value.detach()
        for module, mode in modes.items():
            module.training = mode
        return weights

    def fold(self, form: str) -> None:
        """Brings the layer to a form, in place, unless it is in that or a later one.

        Raises:
            UsageError: if λ is not 1.
        """
        self.check_foldable()
        if self.forms.index(form) <= self.forms.index(self.form):
            return
        weights = self._effective_weights()
        self.fold_weights(weights, '', form)
        self._rebuild(form)
        own = self.state_dict().keys()  # a parametrized norm may stay
        self.load_state_dict({k: v for k, v in weights.items() if k in own}, strict=False)

    def switch_to_deploy(self) -> None:
        """Folds the layer to its last form, in place; raises UsageError if λ is not 1."""
        self.fold(self.forms[-1])

    def check_foldable(self) -> None:
        """Raises UsageError if λ is not 1."""
        if self.lambda_ != 1:
            raise UsageError(
                f'λ = {self.lambda_:g}, but a deep convolution merges only at λ = 1: train until '
                'the schedule reaches it, or call set_deep_training_lambda(model, 1).'
            )

    @property
    def is_trained(self) -> bool:
        """Whether the layer has parameters that are not frozen."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def check_training(self) -> None:
        """Raises UsageError if training could not change this layer; called by ``forward``."""
        if not (self.rebuilt and self.training and torch.is_grad_enabled() and self.is_trained):
            return
        if self.taken_form == 'deploy':
            self.refuse_training()
        by_optimizers, by_ddp = _held_parameters()
        held = by_ddp
        if not all(id(p) in by_optimizers for p in self.parameters() if p.requires_grad):
            held = by_ddp | by_optimizers  # an unused optimizer may hold the old ones
        if any(id(old) in held for old, _ in self.replaced()):
            raise UsageError(
                'the network changed its form after its optimizer was made: make the optimizer '
                'afterwards; or, for merged weights, build the network with merged=True (the '
                'backbone, and the head of a classifier), or train with DeepTrainingHook.'
            )
        held = by_ddp | by_optimizers
        for layer in [*_replaced]:
            if layer.taken_form != 'deploy' and not any(id(o) in held for o, _ in layer.replaced()):
                layer.let_go()
        self.let_go()

    def refuse_training(self) -> None:
        """Raises UsageError: the network is fused."""
        raise UsageError(
            'the network has fused weights, which are only for inference: rebuild it, and train '
            'from the training checkpoint that was fused; or freeze it, if it is a teacher '
            '(requires_grad_(False)).'
        )

    def replaced(self) -> Iterator[Tuple[nn.Parameter, Optional[nn.Parameter]]]:
        """Parameters of earlier forms that still exist, each with what replaced it."""
        for reference, successor in _replaced.get(self, ()):
            parameter = reference()
            if parameter is not None:
                yield parameter, successor

    def let_go(self) -> None:
        """Forgets the earlier forms, once no optimizer holds their parameters."""
        self.rebuilt = False
        _replaced.pop(self, None)

    def _rebuild(self, form: str) -> None:
        before = dict(self.named_parameters())
        with torch.inference_mode(False):  # the layer may be trained later
            self.build_form(form)
        own = dict(self.named_parameters())
        self.rebuilt = True
        _replaced[self] = [
            (weakref.ref(parameter), own.get(_name_after(name)))
            for name, parameter in before.items()
            if own.get(name) is not parameter
        ]
        known = getattr(self, '_params_init_info', None)
        if known is not None:  # mmengine keeps how each parameter was initialized
            for module in self.modules():
                module._params_init_info = known
            for parameter in own.values():
                if parameter not in known:
                    known[parameter].update(init_info='folded', tmp_mean_value=parameter.mean())

    def _load_from_state_dict(self, state_dict: Dict[str, Tensor], prefix: str, *args: Any) -> None:
        given = take(state_dict, prefix)
        if given:
            check_numbers({prefix + name: value for name, value in given.items()}, 'the checkpoint')
            weights, mismatches = match(self, given)
            shapes = mismatches.pop('of another shape')
            # Other keys, such as a profiler's, are harmless.
            mismatches['unexpected'] = [k for k in mismatches['unexpected'] if k.endswith(NUMBERS)]
            complain(mismatches, prefix.rstrip('.') or type(self).__name__)
            own = self.form
            form = self.form_in(weights) or own
            if form != own and shapes:  # reported as torch does; the layer stays as it is
                args[-1].extend(f'size mismatch for {prefix}{shape}.' for shape in shapes)
                weights = self.state_dict()
            elif form != own:
                self._rebuild(form)
                self.taken_form = form
            if form == 'deep':
                weights.setdefault('act._extra_state', torch.tensor(1.0, dtype=torch.float64))
            state_dict.update({prefix + name: value for name, value in weights.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)


def _name_after(name: str) -> str:
    """The name of a parameter after its layer was folded.

    Those of both convolutions become the one's, also if they are pruned or parametrized
    ('conv1.weight_orig', 'conv1.parametrizations.weight.original0').
    """
    found = re.match(r'conv[12]?\..*?(weight|bias)', name)
    return f'conv.{found[1]}' if found else name


def _held_parameters() -> Tuple[Set[int], Set[int]]:
    """The ids of the parameters that this process's optimizers and its DDP wrappers hold."""
    by_optimizers, by_ddp = set(), set()
    for each in gc.get_objects():
        if issubclass(type(each), Optimizer):
            groups = getattr(each, 'param_groups', ())
            by_optimizers.update(id(p) for group in groups for p in group['params'])
        elif issubclass(type(each), DistributedDataParallel):
            by_ddp.update(map(id, getattr(each, '_module_parameters', ())))
    return by_optimizers, by_ddp


def named_foldables(network: nn.Module) -> Iterator[Tuple[str, Foldable]]:
    """Every layer of ``network`` that folds, with the prefix of its keys in a state dict.

    A layer that is in several places is returned once for each.
    """
    for name, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, Foldable):
            yield name and f'{name}.', module


def match(
    network: nn.Module, weights: Mapping[str, Tensor]
) -> Tuple[Dict[str, Tensor], Mismatches]:
    """Compares weights with a network, each layer in the later of the two forms.

    Args:
        network: A network in any form; its layers may have different ones. It is not changed.
        weights: Weights for all of it, in any form.

    Returns:
        The weights, folded to the network's form where theirs is earlier; and what does not fit:
        reasons under '', and keys that are missing, unexpected or of another shape.
    """
    weights = copy.copy(weights)
    given, expected = (
        {k: v.to('meta') for k, v in state.items() if isinstance(v, Tensor)}
        for state in (weights, network.state_dict())
    )
    reasons, missing, unexpected = [], [], []
    for prefix, layer in named_foldables(network):
        own = part(weights, prefix)
        form = layer.form_in(own) or layer.form
        reason = layer.explain_mismatch(own)
        keys = {k for k in own if k.endswith(NUMBERS)}
        if reason:
            reasons.append(f'{prefix.rstrip(".")}: {reason}' if prefix else reason)
        elif own.keys() == layer.state_dict().keys():  # even if somebody changed the layer
            pass
        elif own and keys != layer.keys_in(form):
            missing += [prefix + k for k in layer.keys_in(form) - keys]
            unexpected += [prefix + k for k in keys - layer.keys_in(form)]
            take(given, prefix), take(expected, prefix)
        else:
            form = max(form, layer.form, key=layer.forms.index)
            try:
                for state in (given, expected, weights):
                    layer.fold_weights(state, prefix, form)
            except RuntimeError:
                reasons.append(f'the shapes of {prefix}* do not fit each other.')
    mismatches = {'': reasons, **list_mismatches(given, expected)}
    mismatches['missing'] = sorted(mismatches['missing'] + missing)
    mismatches['unexpected'] = sorted(mismatches['unexpected'] + unexpected)
    return weights, mismatches


def complain(mismatches: Mismatches, what: str, path: Optional[str] = None) -> None:
    """Raises UsageError if there are mismatches.

    Args:
        mismatches: As ``match`` returns them.
        what: The part of the network that they are for.
        path: The file that the weights are from, if it is known.
    """
    given = 'the checkpoint' if path is None else f'checkpoint {path}'
    first = next(iter(mismatches.get('', ())), None)
    found = [f'{kind}: {_first(keys)}' for kind, keys in mismatches.items() if kind and keys]
    if first or found:
        raise UsageError(f'{given} does not fit {what}: {first or "; ".join(found) + "."}')


def list_mismatches(given: Mapping[str, Any], expected: Mapping[str, Any]) -> Mismatches:
    """Keys of a state dict that are missing, unexpected or of another shape."""
    return {
        'missing': sorted(
            key
            for key in expected.keys() - given.keys()
            if not key.endswith(('num_batches_tracked', 'act._extra_state'))
        ),
        'unexpected': sorted(given.keys() - expected.keys()),
        'of another shape': [
            f'{key} {tuple(given[key].shape)} instead of {tuple(value.shape)}'
            for key, value in expected.items()
            if key in given and given[key].shape != value.shape
        ],
    }


def _first(keys: List[str], count: int = 4) -> str:
    return ', '.join(keys[:count]) + (f' and {len(keys) - count} more' if len(keys) > count else '')
