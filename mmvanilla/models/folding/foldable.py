"""The contract of what folds: layers whose weights come in several forms, whoever loads them."""

import copy
import gc
import weakref
from typing import Any, Dict, Iterator, List, Mapping, Optional, Set, Tuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ...errors import UsageError
from .arithmetic import part, take

# At λ = 1 each form computes what the one before it does.
FORMS = ('deep', 'merged', 'deploy')
# What weights are complete with; they may lack counters, and a λ, which then is 1.
NUMBERS = ('weight', 'bias', 'running_mean', 'running_var')
Mismatches = Dict[str, List[str]]

# The parameters that a layer had in earlier forms, weakly, each with what took its place. Not in
# the layer itself: copies and pickles of it have nothing to do with them.
_replaced: 'weakref.WeakKeyDictionary' = weakref.WeakKeyDictionary()


class Foldable(nn.Module):
    """A layer that is built in one of ``forms`` and takes weights in any of them.

    Weights in an earlier form are folded on loading, if their λ is 1. For weights in a later form
    the layer itself is folded: it takes the form of the weights. After that it does not train in
    deploy form, nor while an optimizer holds parameters that it had before.
    """

    forms: Tuple[str, ...] = FORMS
    taken_form: Optional[str] = None  # that of weights, if the layer took it on loading
    rebuilt = False  # whether an optimizer may hold parameters of an earlier form
    lambda_ = 1.0  # equation 1
    is_deep = False  # whether it is in deep form, in which λ may be below 1

    def form_in(self, state_dict: Mapping[str, Tensor], prefix: str = '') -> Optional[str]:
        """The form of this layer's weights, whose keys begin with ``prefix``; None if absent."""
        raise NotImplementedError

    def fold_weights(self, state_dict: Dict[str, Tensor], prefix: str, form: str) -> None:
        """Folds weights of this layer to ``form``, in place; does nothing if they are as far.

        λ is not looked at.
        """
        raise NotImplementedError

    def keys_in(self, form: str) -> Set[str]:
        """The keys of this layer's weights in a form that end with ``NUMBERS``."""
        raise NotImplementedError

    def build_form(self, form: str) -> None:
        """Replaces the layers inside by those of a later form, whose weights are to be loaded."""
        raise NotImplementedError

    def explain_mismatch(self, weights: Mapping[str, Tensor]) -> Optional[str]:
        """Why weights of this layer, without a prefix, cannot be its own and what to do; or None.

        Keys and shapes that do not fit need no explanation: they are named.
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

    def _effective_weights(self) -> Dict[str, Tensor]:
        """The state dict, with what pruned or parametrized convolutions compute with."""
        weights = dict(self.state_dict())
        for name, module in self.named_children():
            if isinstance(module, nn.Conv2d):
                weights[f'{name}.weight'] = module.weight.detach()
        return weights

    def fold(self, form: str) -> None:
        """Brings the layer to a later form, in place; does nothing if it is as far.

        Raises:
            UsageError: if λ is not 1.
        """
        self.check_foldable()
        if self.forms.index(form) <= self.forms.index(self.form):
            return
        weights = self._effective_weights()
        self.fold_weights(weights, '', form)
        self._rebuild(form)
        self.load_state_dict(weights, strict=False)

    def switch_to_deploy(self) -> None:
        """Any form to deploy form, in place; raises UsageError if λ is not 1."""
        self.fold(self.forms[-1])

    def check_foldable(self) -> None:
        """Raises UsageError if λ is not 1."""
        if self.lambda_ != 1:
            raise UsageError(
                f'λ = {self.lambda_:g}: the two convolutions of a deep convolution merge only at '
                'λ = 1; train until the schedule reaches it, or call '
                'set_deep_training_lambda(model, 1).'
            )

    @property
    def is_trained(self) -> bool:
        """Whether it has parameters that are not frozen."""
        return any(parameter.requires_grad for parameter in self.parameters())

    @property
    def is_fused(self) -> bool:
        """Whether it is in deploy form, and another from that in which it trains."""
        return self.form == 'deploy'

    def check_training(self) -> None:
        """Raises UsageError where training would be lost on this layer; called by forward."""
        if not (self.rebuilt and self.training and torch.is_grad_enabled() and self.is_trained):
            return
        if self.taken_form == 'deploy':
            self.refuse_training()
        by_optimizers, by_ddp = _held_parameters()
        held = by_ddp
        if not all(id(p) in by_optimizers for p in self.parameters() if p.requires_grad):
            held = by_ddp | by_optimizers  # those of an optimizer that nobody uses any more
        if any(id(old) in held for old, _ in self.replaced()):
            raise UsageError(
                'the network took another form after its optimizer was made, which holds other '
                'parameters: make the optimizer after that; or, for merged weights, build the '
                'network with merged=True (the backbone, and the head of a classifier), or train '
                'with DeepTrainingHook.'
            )
        held = by_ddp | by_optimizers
        for layer in [*_replaced]:
            if layer.taken_form != 'deploy' and not any(id(o) in held for o, _ in layer.replaced()):
                layer.let_go()
        self.let_go()

    def refuse_training(self) -> None:
        """Raises the UsageError of a network that is fused."""
        raise UsageError(
            'the network has fused weights, which are for inference alone: build it anew, and '
            'train from the training checkpoint that they were made of.'
        )

    def replaced(self) -> Iterator[Tuple[nn.Parameter, Optional[nn.Parameter]]]:
        """Parameters of earlier forms that still exist, and what took their places."""
        for reference, successor in _replaced.get(self, ()):
            parameter = reference()
            if parameter is not None:
                yield parameter, successor

    def let_go(self) -> None:
        """Forgets the earlier forms: no optimizer holds their parameters."""
        self.rebuilt = False
        _replaced.pop(self, None)

    def _rebuild(self, form: str) -> None:
        before = dict(self.named_parameters())
        with torch.inference_mode(False):  # it may be trained later
            self.build_form(form)
        own = dict(self.named_parameters())
        self.rebuilt = True
        _replaced[self] = [
            (weakref.ref(parameter), own.get(name.replace('conv1.', 'conv.')))
            for name, parameter in before.items()
            if own.get(name) is not parameter
        ]
        known = getattr(self, '_params_init_info', None)
        if known is not None:  # mmengine asks of each parameter how it was initialized
            for module in self.modules():
                module._params_init_info = known
            for parameter in own.values():
                if parameter not in known:
                    known[parameter].update(init_info='folded', tmp_mean_value=parameter.mean())

    def _load_from_state_dict(self, state_dict: Dict[str, Tensor], prefix: str, *args: Any) -> None:
        given = take(state_dict, prefix)
        if given:
            weights, mismatches = match(self, given)
            shapes = mismatches.pop('of another shape')
            # Others, such as a profiler's, change nothing.
            mismatches['unexpected'] = [k for k in mismatches['unexpected'] if k.endswith(NUMBERS)]
            complain(mismatches, prefix.rstrip('.') or type(self).__name__)
            own = self.form
            form = self.form_in(weights) or own
            if form != own and shapes:  # as torch names them, and leaves the layer alone
                args[-1].extend(f'size mismatch for {prefix}{shape}.' for shape in shapes)
                weights = self.state_dict()
            elif form != own:
                self._rebuild(form)
                self.taken_form = form
            if form == 'deep':
                weights.setdefault('act._extra_state', torch.tensor(1.0, dtype=torch.float64))
            state_dict.update({prefix + name: value for name, value in weights.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)


def _held_parameters() -> Tuple[Set[int], Set[int]]:
    """Identities of the parameters that optimizers, and DDP wrappers, of this process hold."""
    by_optimizers, by_ddp = set(), set()
    for each in gc.get_objects():
        if issubclass(type(each), Optimizer):
            groups = getattr(each, 'param_groups', ())
            by_optimizers.update(id(p) for group in groups for p in group['params'])
        elif issubclass(type(each), DistributedDataParallel):
            by_ddp.update(map(id, getattr(each, '_module_parameters', ())))
    return by_optimizers, by_ddp


def named_foldables(network: nn.Module) -> Iterator[Tuple[str, Foldable]]:
    """Every layer of ``network`` that folds, with what its keys in a state dict begin with.

    A layer that is in several places comes with each of its names.
    """
    for name, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, Foldable):
            yield name and f'{name}.', module


def match(
    network: nn.Module, weights: Mapping[str, Tensor]
) -> Tuple[Dict[str, Tensor], Mismatches]:
    """Compares weights with a network, each layer in the later of the two forms.

    Args:
        network: A network in any form, or mixed ones. It is left as it is.
        weights: Weights for all of it, in any form.

    Returns:
        The weights, in the form of the network where theirs is earlier; and what does not fit:
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
        elif own.keys() == layer.state_dict().keys():  # also of layers that somebody changed
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
                reasons.append(f'the shapes of {prefix}* contradict each other.')
    mismatches = {'': reasons, **list_mismatches(given, expected)}
    mismatches['missing'] = sorted(mismatches['missing'] + missing)
    mismatches['unexpected'] = sorted(mismatches['unexpected'] + unexpected)
    return weights, mismatches


def complain(mismatches: Mismatches, what: str, path: Optional[str] = None) -> None:
    """Raises UsageError if there are mismatches.

    Args:
        mismatches: As ``match`` returns them.
        what: The part of the network.
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
