"""The deep training schedule (section 3.1): λ from 0 to 1, and fusing after training."""

import math
from typing import Any, Dict, List, Optional, Set

import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor

from ...arguments import AT_LEAST_0, checked
from ...errors import UsageError
from ...models.folding.foldable import Foldable, match, named_foldables
from ...models.folding.network import deep_convs, form_of, unwrap
from ...models.loading.names import name_weights
from ...models.loading.weights import pretrained_cfgs
from ...registry import HOOKS, register
from ..annealed_layers import (
    Layers,
    annealed_layers,
    averages_in_model,
    foldables_of_run,
    trained_layers,
)
from ..fused_file import write_fused_file
from ..merging import can_merge_now, check_run, fold_in_run, merge_in_run

SCHEDULES = {
    'linear': lambda progress: progress,
    'cosine': lambda progress: (1 - math.cos(math.pi * progress)) / 2,
}


def deep_training_lambda(step: int, total: int, schedule: str = 'linear') -> float:
    """λ at a step (epoch or iteration, from 0) of a schedule that reaches 1 at step ``total``."""
    return SCHEDULES[schedule](min(step / total, 1.0) if total else 1.0)


@register(HOOKS)
class DeepTrainingHook(Hook):
    """Anneals λ from 0 to 1, and writes the fused network at the end.

    It sets λ of the deep convolutions that the run trains, and of averages of them (EMA, momentum
    encoders, mean teachers). Frozen stages and teachers keep their own.

    λ depends only on the epoch or iteration, so a resumed run continues the schedule. It is logged
    as ``lambda`` beside the learning rate. The fused checkpoint is written beside the last one, as
    ``*_deploy.pth``, from the weights that were evaluated: under EMA, the averaged ones.

    Args:
        decay_epochs: Epochs E until λ = 1 (the paper: 100 of 300); 0 for λ = 1 throughout.
        schedule: 'linear', λ = e / E, or 'cosine', λ = (1 - cos(π e / E)) / 2.
        by_epoch: Whether λ changes at every epoch, or at every iteration.
        decay_iters: Iterations until λ = 1, with ``by_epoch=False``.
        merge: Whether to merge each pair of convolutions as soon as λ = 1, and to continue in
            merged form, for about half the arithmetic. In eval mode the network computes the same
            before and after. The paper continues in deep form.

    Raises:
        UsageError: for an unknown schedule, a length that is missing or negative, or arguments of
            other names or kinds.
    """

    priority = 'HIGH'  # before EMA hooks, which read what after_load_checkpoint prepares

    @checked(decay_epochs=AT_LEAST_0, decay_iters=AT_LEAST_0)
    def __init__(
        self,
        decay_epochs: int = 100,
        schedule: str = 'linear',
        by_epoch: bool = True,
        decay_iters: Optional[int] = None,
        merge: bool = False,
    ) -> None:
        if schedule not in SCHEDULES:
            raise UsageError(
                f'schedule={schedule!r} is unknown: choose one of {", ".join(SCHEDULES)}.'
            )
        if by_epoch == (decay_iters is not None):
            raise UsageError(
                'use decay_iters with by_epoch=False, decay_epochs with by_epoch=True.'
            )
        self.length_name = 'decay_epochs' if by_epoch else 'decay_iters'
        self.length = decay_epochs if by_epoch else decay_iters
        self.schedule = schedule
        self.by_epoch = by_epoch
        self.merge = merge
        self.weights_loaded = False
        self.resumed_merged = False
        self.annealed: Layers = {}
        self.averages: Set[str] = set()
        # Weights of layers that may turn out to be averages; None before the first iteration
        self.watched: Optional[Dict[str, Tensor]] = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self.weights_loaded = not runner._resume
        model = unwrap(runner.model)
        name_weights(checkpoint, model)
        weights = checkpoint['state_dict']
        if runner._resume:
            self.averages = set(checkpoint.get('meta', {}).get('averages', ()))
            self._take_forms(runner, weights)  # before weights, momenta and averages are loaded
        # Fine-tuning with other classes: mmpretrain's EMA hook would refuse the averaged copy; the
        # state dict holds the same weights.
        elif 'ema_state_dict' in checkpoint and match(model, weights)[1]['of another shape']:
            del checkpoint['ema_state_dict']

    def before_train(self, runner: Runner) -> None:
        if sum(isinstance(hook, DeepTrainingHook) for hook in runner.hooks) > 1:
            raise UsageError('there are two DeepTrainingHooks, but λ has one schedule: remove one.')
        if self.by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise UsageError(
                'DeepTrainingHook counts epochs, but the train loop counts iterations: set '
                'by_epoch=False and decay_iters.'
            )
        trained = trained_layers(runner)
        trained_convs = [layer for layer in trained.values() if 'deep' in layer.forms]
        if self.length and not trained_convs:
            raise UsageError(
                'DeepTrainingHook found no deep convolution that this run trains: remove the hook, '
                f'or set {self.length_name}=0 so that it only fuses the network.'
            )
        for layer in trained.values():
            if layer.form == 'deploy':
                layer.refuse_training()
        self._follow_loaded_forms(runner, trained)
        if self.merge:
            check_run(runner)
        if self._lambda(runner) < 1 and not all(conv.is_deep for conv in trained_convs):
            raise UsageError(
                f'{self.length_name}={self.length} anneals λ, but the network is already merged: '
                f'set {self.length_name}=0, or build the network without merged=True.'
            )
        self._warn(runner, trained_convs)
        self.averages |= averages_in_model(runner)

    def before_train_epoch(self, runner: Runner) -> None:
        self.annealed = annealed_layers(runner, self.averages)  # a hook may have unfrozen layers
        if self.by_epoch:
            self._set_lambda(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if self._find_averages(runner) or not self.by_epoch:
            self._set_lambda(runner)
        self._merge_if_due(runner)
        runner.message_hub.update_scalar('train/lambda', self._lambda(runner))

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if self.watched is None:  # until now, hooks may have loaded a teacher's weights
            self.watched = self._sample_others(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        checkpoint['meta']['form'] = form_of(unwrap(runner.model))
        checkpoint['meta']['averages'] = sorted(self.averages)

    @master_only
    def after_train(self, runner: Runner) -> None:
        write_fused_file(runner)

    def _lambda(self, runner: Runner) -> float:
        step = runner.epoch if self.by_epoch else runner.iter
        return deep_training_lambda(step, self.length, self.schedule)

    def _set_lambda(self, runner: Runner) -> None:
        value = self._lambda(runner)
        for prefix, conv in foldables_of_run(runner):
            if prefix in self.annealed and conv.is_deep:
                conv.lambda_ = value

    def _merge_if_due(self, runner: Runner) -> None:
        due = self.merge and self._lambda(runner) == 1
        if due and any(conv.is_deep for conv in self.annealed.values()) and can_merge_now(runner):
            merge_in_run(runner, self.annealed)
            runner.logger.info('λ = 1: training continues in merged form.')

    def _find_averages(self, runner: Runner) -> bool:
        """Finds layers that the run changes without training them, such as those of a teacher."""
        if not self.watched or self._lambda(runner) == 1:
            return False
        now = self._sample_others(runner)
        changed = {p for p in now if p in self.watched and not now[p].equal(self.watched[p])}
        if changed:
            self.averages |= changed
            self.annealed = annealed_layers(runner, self.averages)
            self.watched = self._sample_others(runner)
        return bool(changed)

    def _sample_others(self, runner: Runner) -> Dict[str, Tensor]:
        """Some weights, (n,), of each deep convolution that is neither trained nor an average."""
        known = {*self.annealed, *self.averages}
        return {
            prefix: layer.conv1.weight.detach().flatten()[:256].clone()
            for prefix, layer in named_foldables(unwrap(runner.model))
            if layer.is_deep and prefix not in known
        }

    def _warn(self, runner: Runner, trained_convs: List[Foldable]) -> None:
        """Warns if λ will not reach 1, or is not the one of the loaded weights."""
        steps = runner.max_epochs if self.by_epoch else runner.max_iters
        last = deep_training_lambda(steps - 1, self.length, self.schedule)
        if last < 1:
            runner.logger.warning(
                f'λ reaches only {last:.3g} in the {steps} '
                f'{"epochs" if self.by_epoch else "iterations"} of this run '
                f'({self.length_name}={self.length}), so the network cannot be fused, and no fused '
                f'checkpoint will be written: set {self.length_name} to at most {steps - 1}.'
            )
        now = self._lambda(runner)
        loaded = {conv.lambda_ for conv in trained_convs if conv.is_deep} - {now}
        is_start = self.weights_loaded or (
            not runner._resume and _is_pretrained(runner.model, trained_convs)
        )
        if loaded and is_start:
            mend = (
                f'To fine-tune at λ = 1, set {self.length_name}=0.'
                if now < 1
                else 'To keep what it computed, first resume the run that it is from until λ = 1.'
            )
            runner.logger.warning(
                f'Weights were loaded at λ = {min(loaded):g}, but training starts at λ = {now:g}: '
                f'the network no longer computes what it did. {mend}'
            )

    def _follow_loaded_forms(self, runner: Runner, trained: Layers) -> None:
        """Adapts optimizers, averaged copies and λ to layers in the form of loaded weights."""
        layers = dict(named_foldables(unwrap(runner.model)))
        taken = {prefix: layer.form for prefix, layer in layers.items() if layer.taken_form}
        if taken:
            fold_in_run(runner, taken)
        merged = self.resumed_merged or any(prefix in taken for prefix in trained)
        if merged and self._lambda(runner) < 1:
            runner.logger.warning(
                'The loaded weights are merged, so λ stays 1: '
                f'{self.length_name}={self.length} is ignored.'
            )
            self.length = 0

    def _take_forms(self, runner: Runner, state_dict: Dict[str, Tensor]) -> None:
        """Brings layers to their forms in the checkpoint that a run resumes from."""
        trained = trained_layers(runner)
        forms = {}
        for prefix, layer in named_foldables(unwrap(runner.model)):
            its, own = layer.form_in(state_dict, prefix) or layer.form, layer.form
            if its == 'deploy' != own and prefix in trained:
                raise UsageError(
                    'the checkpoint holds fused weights, from which training cannot continue: '
                    'resume from an epoch_*.pth that training wrote.'
                )
            if its == 'deep' != own:
                raise UsageError(
                    'the checkpoint is of a network in deep form, but this one is built merged, so '
                    'the optimizer does not fit: resume with the config that it was trained with, '
                    'or start from its weights (load_from).'
                )
            if its != own or layer.taken_form:
                forms[prefix] = its
        if forms:
            fold_in_run(runner, forms)
            self.resumed_merged = any(prefix in trained for prefix in forms)


def _is_pretrained(model: torch.nn.Module, convs: List[Foldable]) -> bool:
    """Whether a module that contains some of these was initialized from a checkpoint."""
    for module in model.modules():
        cfgs = pretrained_cfgs(getattr(module, 'init_cfg', None))
        if any(cfg.get('checkpoint') for cfg in cfgs) and {*deep_convs(module)} & {*convs}:
            return True
    return False
