"""What the command-line tools share: options, checks before any long work, one-sentence errors."""

import argparse
import os
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Union

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.registry import MODELS, RUNNERS, init_default_scope
from mmengine.runner import Runner
from mmengine.runner import checkpoint as runner_checkpoint
from torch import nn

from ..checkpoint import load_checkpoint
from ..errors import UsageError
from ..models.loading import name_weights, pretrained_cfgs
from ..models.vanillanet import VanillaNet
from .config import nested_dicts

# Where the data sets of the configs are to be had, by their class.
DATA_SOURCES = {
    'CocoDataset': 'COCO 2017 (images and annotations) is at https://cocodataset.org/#download; '
    'unpack train2017, val2017 and annotations',
    'ImageNet': 'ImageNet-1k is at https://www.image-net.org/download.php; unpack train and val',
    'ADE20KDataset': 'ADE20K is at https://groups.csail.mit.edu/vision/datasets/ADE20K; unpack it',
}
# The extras of setup.py, by what mmengine and onedl-mmengine call the package of a base.
EXTRAS = {'mmsegmentation': 'segmentation', 'mmseg': 'onedl-segmentation'}
WEIGHTS = 'https://github.com/huawei-noah/VanillaNet/releases'


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that OpenMMLab's train and test tools have in common."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='folder for logs, checkpoints and results')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config, as key=value; lists as key="[a,b]" or key=a,b',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher',
    )
    # torch.distributed.launch passes --local-rank, in older versions --local_rank.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser


def load_config(args: argparse.Namespace) -> Config:
    """The config with the common command-line options merged in."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    return cfg


def read_config(path: Union[str, Path]) -> Config:
    """Reads a config file.

    Raises:
        UsageError: if it does not exist, or if a package that its bases are in is not installed.
    """
    if not Path(path).is_file():
        raise UsageError(f'config {path} does not exist: check the path.')
    try:
        with warnings.catch_warnings():  # which mmengine raises anew for each base of a package
            warnings.filterwarnings('ignore', 'pkg_resources is deprecated', UserWarning)
            return Config.fromfile(path)
    except ModuleNotFoundError as error:
        if error.name == 'pkg_resources':
            raise UsageError(
                'mmengine reads mmdet:: and mmpretrain:: bases through pkg_resources, which newer '
                'setuptools lack: pip install "setuptools<81".'
            ) from None
        if error.name is None:  # mmengine's own, about the package of a base
            extra = EXTRAS.get(str(error).split()[0])
            mend = f' (pip install -e ".[{extra}]" in the folder of mmvanilla)' if extra else ''
            raise UsageError(f'config {path} cannot be read: {error}{mend}.') from None
        raise


def use_safe_loading() -> None:
    """From here on, mmengine reads local files and http(s) addresses without running their code."""

    def load(filename: str, *args: Any, **kwargs: Any) -> dict:
        checkpoint = load_checkpoint(filename)  # on the CPU: who loads moves the values
        name_weights(checkpoint)
        return checkpoint

    # onedl-mmengine falls back to unrestricted pickle, and mmengine downloads with it.
    for prefix in ('', 'http://', 'https://'):
        runner_checkpoint.CheckpointLoader.register_scheme(prefix, load, force=True)
    runner_checkpoint.load_from_http = load  # by which its torchvision:// and open-mmlab:// load


def build_runner(cfg: Config) -> Runner:
    """Builds the runner of a config; every checkpoint it loads is read without running its code."""
    use_safe_loading()
    if cfg.get('launcher') == 'pytorch':
        if 'RANK' not in os.environ:
            raise UsageError(
                '--launcher pytorch is for processes that torchrun starts: use tools/dist_train.sh '
                'or tools/dist_test.sh, or leave it out.'
            )
        if get_device() == 'cpu':
            _join_on_cpu(cfg)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def _join_on_cpu(cfg: Config) -> None:
    """Joins the processes of this run; mmengine's own way, and of wrapping, asks for GPUs."""
    if any(part.get('type') == 'SyncBN' for part in nested_dicts(cfg.model)):
        raise UsageError(
            'SyncBN works on GPUs alone: for several processes on CPUs set it to BN, in the '
            'backbone by --cfg-options model.backbone.norm_cfg.type=BN.'
        )
    torch.distributed.init_process_group('gloo')
    wrapper = dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    cfg.setdefault('model_wrapper_cfg', wrapper)
    cfg.model_wrapper_cfg.setdefault('device_ids', None)


def check_pretrained(cfg: Config) -> None:
    """Raises UsageError if a local pre-trained file of the model is absent or unreadable."""
    for part in pretrained_cfgs(list(nested_dicts(cfg.model))):
        path = part.get('checkpoint')
        if path is None or '://' in path:
            continue
        if not Path(path).is_file():
            raise UsageError(
                f'pre-trained weights {path} do not exist: put the file there (VanillaNet: '
                f'{WEIGHTS}), name another with --cfg-options '
                'model.backbone.init_cfg.checkpoint=..., or train from scratch with '
                '--cfg-options model.backbone.init_cfg=None.'
            )
        load_checkpoint(path)


def check_channels(cfg: Config) -> None:
    """Raises UsageError where the neck does not take the channels that a VanillaNet gives."""
    backbone, neck = dict(cfg.model.get('backbone') or {}), cfg.model.get('neck')
    is_ours = str(backbone.pop('type', None)).split('.')[-1] == 'VanillaNet'
    taken = neck.get('in_channels') if isinstance(neck, dict) else None
    if not is_ours or not isinstance(taken, list):
        return
    with torch.device('meta'):
        given = list(VanillaNet(**backbone | dict(init_cfg=None)).out_channels)
    if taken != given:
        raise UsageError(
            f'model.neck.in_channels is {taken}, and the backbone gives {given}: set it to that, '
            'or choose other out_indices.'
        )


def check_classes(cfg: Config) -> None:
    """Raises UsageError where a classifier's numbers of classes do not go together."""
    head = cfg.model.get('head') or {}
    classes = head.get('num_classes')
    mixed = (cfg.get('data_preprocessor') or {}).get('num_classes')
    if not classes:
        return
    if (cfg.model.get('train_cfg') or {}).get('augments') and mixed not in (None, classes):
        raise UsageError(
            f'model.head.num_classes is {classes} and data_preprocessor.num_classes is {mixed}: '
            'set both to the number of classes of the data.'
        )
    for part in nested_dicts([cfg.get('val_evaluator'), cfg.get('test_evaluator')]):
        topk = part.get('topk') or 0
        largest = max(topk) if isinstance(topk, (list, tuple)) else topk
        if largest > classes:
            raise UsageError(
                f'an evaluator has topk={topk}, and there are {classes} classes: set val_evaluator '
                'and test_evaluator to a topk of at most that.'
            )


def drop_pretrained(cfg: Config) -> None:
    """Takes pre-trained files out of the model, where a checkpoint's weights come after them."""
    for part in nested_dicts(cfg.model):
        if any(pretrained_cfgs(part.get('init_cfg'))):
            part['init_cfg'] = None


def build_model(cfg: Config) -> nn.Module:
    """The model of a config with its data preprocessor, as a runner has it, without a runner.

    Pre-trained files are left out; the weights are not initialized.
    """
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    if 'data_preprocessor' in cfg:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    drop_pretrained(cfg)
    return MODELS.build(cfg.model)


def check_data(cfg: Config, *parts: str) -> None:
    """Raises UsageError if what dataloaders and evaluators (by their names) read is not there."""
    for name in parts:
        for part in nested_dicts(cfg.get(name)):
            root = part.get('data_root') or ''
            source = DATA_SOURCES.get(str(part.get('type')).split('.')[-1])
            prefix = part.get('data_prefix') or ''
            paths = [
                part.get('ann_file'),
                *(prefix.values() if isinstance(prefix, dict) else [prefix]),
            ]
            paths = [os.path.join(root, path) for path in paths if path and isinstance(path, str)]
            # A data set that names its folder alone may fetch the data itself; those known do not.
            for path in paths or [os.path.join(root, part.get('split', ''))] * bool(source):
                if '://' not in path and not os.path.exists(path):
                    hint = f'{source} under {root or path}' if source else 'put the data there'
                    raise UsageError(
                        f'no data at {path}: {hint}, or name another place in --cfg-options '
                        '(data_root of the data sets, ann_file of the evaluators).'
                    )


def check_amp() -> None:
    """Raises UsageError where mmengine's AmpOptimWrapper would refuse to run."""
    if not torch.cuda.is_available():
        raise UsageError('--amp needs a GPU: leave it out on a CPU.')


@contextmanager
def one_sentence_errors() -> Iterator[None]:
    """Ends the process with the message alone where the user's input was wrong."""
    try:
        yield
    except UsageError as error:
        # mmengine's registry raises the error of a module anew, with the places it came by.
        while isinstance(error.__context__, UsageError):
            error = error.__context__
        sys.exit(f'error: {error}')
