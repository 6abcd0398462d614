"""Writing the fused network at the end of a run, without ever harming the run."""

import shlex
from pathlib import Path
from typing import Tuple

import torch
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner
from torch import nn

from ..config import deploy_config
from ..deployment.fused_checkpoint import save_fused
from ..models.folding.network import (
    check_fused,
    copy_network,
    deep_convs,
    switch_to_deploy,
    unwrap,
)
from .annealed_layers import ema_hooks


def write_fused_file(runner: Runner) -> None:
    """Writes the fused network beside the run's checkpoints, named after the epoch or iteration.

    Whatever prevents it becomes one sentence in the log, with the command that does it later.
    """
    folder, name = _place(runner)
    model = _evaluated_model(runner)
    reached = min((conv.lambda_ for conv in deep_convs(model)), default=1)
    if reached < 1:
        runner.logger.warning(f'No fused checkpoint was written: λ is {reached:.3g}, not 1.')
        return
    command = 'python tools/deploy.py {} {} {}'.format(
        *(
            shlex.quote(str(each))
            for each in (
                runner.cfg.filename or 'CONFIG',
                runner.message_hub.get_info('last_ckpt') or 'CHECKPOINT',
                folder / 'deploy',
            )
        )
    )
    bad = next((n for n, t in model.state_dict().items() if not torch.isfinite(t).all()), None)
    if bad is not None:
        runner.logger.error(
            f'No fused checkpoint was written: {bad} has values that are not finite, so the run '
            f'diverged. An earlier checkpoint can be fused: {command}'
        )
        return
    try:
        model = copy_network(model, device='cpu')  # a GPU may be full
        fused = switch_to_deploy(model)
        check_fused(model, fused)
        save_fused(
            folder / name,
            fused,
            deploy_config(runner.cfg),
            getattr(runner.train_dataloader.dataset, 'metainfo', None),
            epoch=runner.epoch,
            iter=runner.iter,
        )
    except Exception as error:  # the hooks after this one must run
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        runner.logger.error(
            f'No fused checkpoint was written ({reason}). To write one later: {command}'
        )
        return
    runner.logger.info(f'The fused network is in {folder / name}.')


def _evaluated_model(runner: Runner) -> nn.Module:
    # mmpretrain's EMA hook may be set to evaluate the model itself.
    hooks = [hook for hook in ema_hooks(runner) if getattr(hook, 'evaluate_on_ema', True)]
    return unwrap(hooks[0].ema_model if hooks else runner.model)


def _place(runner: Runner) -> Tuple[Path, str]:
    """The folder of a run's checkpoints, if it is local, and the name of its fused file now."""
    hook = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
    if hook is None:
        return Path(runner.work_dir), f'epoch_{runner.epoch}_deploy.pth'
    step = runner.epoch if hook.by_epoch else runner.iter
    is_local = isinstance(hook.file_backend, LocalBackend)
    folder = Path(hook.out_dir if is_local else runner.work_dir)
    return folder, f'{Path(hook.filename_tmpl.format(step)).stem}_deploy.pth'
