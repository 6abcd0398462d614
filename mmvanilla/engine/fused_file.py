"""Writing the fused network at the end of a run, without ever harming the run."""

import re
import shlex
from pathlib import Path
from typing import Iterator, Tuple

from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor, nn

from ..config import deploy_config
from ..deployment.fused_checkpoint import save_fused
from ..models.folding.foldable import named_foldables
from ..models.folding.network import check_fused, copy_network, switch_to_deploy, unwrap
from .annealed_layers import ema_hooks


def write_fused_file(runner: Runner) -> None:
    """Writes the fused network beside the run's checkpoints, named after the epoch or iteration.

    Whatever prevents it becomes one sentence in the log, with the command that does it later.
    """
    try:
        path = _place(runner)
        model = _evaluated_model(runner)
        for prefix, layer in named_foldables(model):
            if layer.lambda_ < 1:
                runner.logger.warning(
                    f'No fused checkpoint was written: λ is {layer.lambda_:.3g}, not 1, in '
                    f'{prefix.rstrip(".")}.'
                )
                return
        bad = next((name for name, value in _numbers(model) if not value.isfinite().all()), None)
        if bad is not None:
            runner.logger.error(
                f'No fused checkpoint was written: {bad} has values that are not finite, so the '
                f'run diverged. An earlier checkpoint can be fused: {_command(runner)}'
            )
            return
        model = copy_network(model, device='cpu')  # a GPU may be full
        fused = switch_to_deploy(model)
        check_fused(model, fused)
        save_fused(
            path,
            fused,
            deploy_config(runner.cfg),
            getattr(runner.train_dataloader.dataset, 'metainfo', None),
            epoch=runner.epoch,
            iter=runner.iter,
        )
    except Exception as error:  # the hooks after this one must run
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        runner.logger.error(
            f'No fused checkpoint was written ({reason}). To write one later: {_command(runner)}'
        )
        return
    runner.logger.info(f'The fused network is in {path}.')


def _numbers(model: nn.Module) -> Iterator[Tuple[str, Tensor]]:
    """The parameters of a model, and the statistics of layers that fold."""
    yield from model.named_parameters()
    for prefix, layer in named_foldables(model):
        for name, value in layer.named_buffers():
            yield prefix + name, value


def _command(runner: Runner) -> str:
    """The command that fuses a checkpoint of a run."""
    config = runner.cfg.filename or 'CONFIG'
    checkpoint = runner.message_hub.runtime_info.get('last_ckpt') or 'CHECKPOINT'
    words = ['python', 'tools/deploy.py', config, checkpoint, Path(runner.work_dir) / 'deploy']
    return ' '.join(shlex.quote(str(word)) for word in words)


def _evaluated_model(runner: Runner) -> nn.Module:
    """The network whose weights were evaluated: the averaged one under EMA."""
    network = unwrap(runner.model)
    for hook in ema_hooks(runner):
        averages_all = getattr(hook, 'src_model', network) is network
        # mmpretrain's EMA hook may be set to evaluate the model itself.
        if averages_all and getattr(hook, 'evaluate_on_ema', True):
            return unwrap(hook.ema_model)
    return network


def _place(runner: Runner) -> Path:
    """The fused file: in the folder of a run's checkpoints, if it is local, and named like them."""
    hook = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
    by_epoch = not isinstance(runner.train_loop, IterBasedTrainLoop)
    if hook is None:
        folder, template = runner.work_dir, 'epoch_{}' if by_epoch else 'iter_{}'
    else:
        by_epoch, template = hook.by_epoch, hook.filename_tmpl
        folder = hook.out_dir if isinstance(hook.file_backend, LocalBackend) else runner.work_dir
    name = template.format(runner.epoch if by_epoch else runner.iter)
    return Path(folder) / f'{re.sub("[.][a-z]+$", "", name)}_deploy.pth'
