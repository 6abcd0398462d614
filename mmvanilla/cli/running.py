"""Building what a config describes, and running it."""

import json
import os
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.evaluator import DumpResults
from mmengine.model import BaseTTAModel
from mmengine.registry import MODELS, RUNNERS, init_default_scope
from mmengine.runner import Runner
from mmengine.runner import checkpoint as runner_checkpoint
from torch import nn

from ..checkpoint import check_writable, load_checkpoint
from ..compatibility import AdvanceDataHook
from ..config import nested_dicts, scope_of
from ..deployment.exported_network import is_exported, load_exported, read_description
from ..engine.hooks.run_check_hook import RunCheckHook
from ..errors import UsageError
from ..models.folding.network import switch_to_deploy, unwrap
from ..models.loading.names import name_weights
from ..models.loading.weights import load_weights, pretrained_cfgs, read_state_dict
from ..models.norm import is_sync_norm
from .augmented_test import augment_test
from .checks import check_data
from .config_in_checkpoint import check_same_model

# By launcher: where its processes have their rank, and what starts them.
STARTERS = dict(
    pytorch=('RANK', 'torchrun: use tools/dist_train.sh or tools/dist_test.sh'),
    slurm=('SLURM_PROCID', 'srun: use tools/slurm_train.sh'),
    mpi=('OMPI_COMM_WORLD_RANK', 'mpirun'),
)


def use_safe_loading() -> None:
    """Makes mmengine read local files and http(s) addresses without running code from them."""

    def load(filename: str, *args: Any, **kwargs: Any) -> dict:
        checkpoint = load_checkpoint(filename)  # on the CPU: load_state_dict moves the values
        name_weights(checkpoint)
        return checkpoint

    # onedl-mmengine falls back to unrestricted pickle; mmengine uses it for downloads.
    for prefix in ('', 'http://', 'https://'):
        runner_checkpoint.CheckpointLoader.register_scheme(prefix, load, force=True)
    runner_checkpoint.load_from_http = load  # for torchvision:// and open-mmlab://


def build_runner(cfg: Config) -> Runner:
    """Builds a config's runner; it reads checkpoints without running code from them."""
    use_safe_loading()
    launcher = cfg.get('launcher')
    if launcher in STARTERS and STARTERS[launcher][0] not in os.environ:
        raise UsageError(
            f'--launcher {launcher} is for processes started by {STARTERS[launcher][1]}, or leave '
            'it out.'
        )
    if launcher == 'pytorch' and get_device() == 'cpu':
        _join_on_cpu(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    runner.register_hook(AdvanceDataHook())
    if not any(isinstance(hook, RunCheckHook) for hook in runner.hooks):
        runner.register_hook(RunCheckHook())
    return runner


def _join_on_cpu(cfg: Config) -> None:
    """Connects the run's processes and wraps the model without GPUs, which mmengine cannot do."""
    if any(is_sync_norm(part) for part in nested_dicts(cfg.model)):
        raise UsageError(
            'SyncBN works only on GPUs: for several processes on CPUs use BN, in the backbone '
            'by --cfg-options model.backbone.norm_cfg.type=BN.'
        )
    torch.distributed.init_process_group('gloo')
    wrapper = dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    cfg.setdefault('model_wrapper_cfg', wrapper)
    cfg.model_wrapper_cfg.setdefault('device_ids', None)


def drop_pretrained(cfg: Config) -> None:
    """Removes pre-trained files from the model's config: a checkpoint will be loaded later."""
    for part in nested_dicts(cfg.model):
        if any(pretrained_cfgs(part.get('init_cfg'))):
            part['init_cfg'] = None
        if part.get('pretrained'):
            part['pretrained'] = None


def use_amp(cfg: Config) -> None:
    """Makes training use automatic mixed precision; UsageError without a GPU, which it needs."""
    if not torch.cuda.is_available():
        raise UsageError('--amp needs a GPU: leave it out on a CPU.')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def build_model(cfg: Config) -> nn.Module:
    """The model of a config with its data preprocessor, as a runner builds it.

    Pre-trained files are not loaded, and the weights are not initialized.
    """
    init_default_scope(scope_of(cfg))
    if 'data_preprocessor' in cfg:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    drop_pretrained(cfg)
    return MODELS.build(cfg.model)


def load_without_workers(cfg: Config) -> None:
    """Makes the test data load in this process, as networks of OpenVINO need it.

    When the garbage collector frees such a network, it lets other threads run, such as those of a
    data loader with workers, and the process crashes.
    """
    cfg.test_dataloader.update(num_workers=0, persistent_workers=False)


def image_channels(model: nn.Module) -> int:
    """The channels of the images that a model takes: those of its first convolution."""
    convs = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    return next((conv.in_channels for conv in convs), 3)


def read_log(work_dir: Path) -> List[Dict[str, Any]]:
    """The lines of a run's log, each the losses of some iterations or the metrics of an epoch."""
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in log.read_text().splitlines()]


def evaluate(
    cfg: Config,
    checkpoint: str,
    deploy: bool = False,
    out: Optional[str] = None,
    tta: bool = False,
) -> Dict[str, float]:
    """The metrics of a checkpoint on the config's test data.

    Args:
        cfg: A config of any OpenMMLab package.
        checkpoint: Path or address of a checkpoint in any form, the authors' included; or a file
            for onnxruntime or OpenVINO.
        deploy: Whether to evaluate the fused network.
        out: File (.pkl) for the predictions.
        tta: Whether to average over augmented images.

    Raises:
        UsageError: if data or weights are missing, or the weights are of another model.
    """
    cfg.load_from, cfg.resume = None, False  # weights are loaded below, before EMA hooks copy
    for name in ('model', 'test_dataloader', 'test_evaluator', 'test_cfg'):
        if not cfg.get(name) and (name != 'test_cfg' or cfg.get(name) is None):  # it may be empty
            raise UsageError(
                f'the config has no {name}, which testing needs: take the one of the training.'
            )
    check_writable(cfg.work_dir, is_folder=True)
    if out:
        check_writable(out)
    check_data(cfg, 'test_dataloader', 'test_evaluator')
    if is_exported(checkpoint):
        if deploy or tta:
            raise UsageError(f'{checkpoint} is evaluated as it is: leave out --deploy and --tta.')
        cfg.custom_hooks = []  # of the training
        load_without_workers(cfg)
        description = read_description(checkpoint)
        check_same_model(description[0]['config'], cfg, checkpoint)
        exported = load_exported(checkpoint, cfg, description)
        runner = build_runner(cfg)
        runner.model = exported
    else:
        weights = read_state_dict(checkpoint)
        if tta:
            augment_test(cfg)
        runner = build_runner(cfg)
        model = unwrap(runner.model)
        model = model.module if isinstance(model, BaseTTAModel) else model
        load_weights(model, weights, checkpoint)
        if deploy:
            switch_to_deploy(runner.model, inplace=True)
    if out:
        runner.test_evaluator.metrics.append(DumpResults(out_file_path=out))
    return runner.test()
