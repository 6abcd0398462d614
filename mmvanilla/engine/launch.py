"""What the command-line tools share: options, checks before any long work, one-sentence errors."""

import argparse
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader

from ..checkpoint import load_checkpoint
from ..errors import UsageError
from .config import nested_dicts

# Where the data sets of the configs are to be had, by their class.
DATA_SOURCES = {
    'CocoDataset': 'COCO 2017 (images and annotations) is at https://cocodataset.org/#download; '
    'unpack train2017, val2017 and annotations',
    'ImageNet': 'ImageNet-1k is at https://www.image-net.org/download.php; unpack train and val',
    'ADE20KDataset': 'ADE20K is at https://groups.csail.mit.edu/vision/datasets/ADE20K; unpack it',
}
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
    if not Path(args.config).is_file():
        raise UsageError(f'config {args.config} does not exist: check the path.')
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    return cfg


def build_runner(cfg: Config) -> Runner:
    """Builds the runner of a config; every checkpoint it loads is read without running its code."""
    for prefix in ('', 'http://', 'https://'):
        # onedl-mmengine falls back to unrestricted pickle, and mmengine downloads with it.
        CheckpointLoader.register_scheme(
            prefix,
            lambda filename, map_location=None, **kwargs: load_checkpoint(filename, map_location),
            force=True,
        )
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def check_pretrained(cfg: Config) -> None:
    """Raises UsageError if a local pre-trained file of the model is absent or unreadable."""
    for part in nested_dicts(cfg.model):
        path = part.get('checkpoint')
        if part.get('type') != 'Pretrained' or path is None or '://' in path:
            continue
        if not Path(path).is_file():
            raise UsageError(
                f'pre-trained weights {path} do not exist: put the file there (VanillaNet: '
                f'{WEIGHTS}), or train from scratch with '
                '--cfg-options model.backbone.init_cfg=None.'
            )
        load_checkpoint(path, mmap=True)


def check_data(cfg: Config, *dataloaders: str) -> None:
    """Raises UsageError if the data that the dataloaders read is not there."""
    for dataloader in dataloaders:
        for dataset in nested_dicts((cfg.get(dataloader) or {}).get('dataset')):
            root = dataset.get('data_root') or ''
            prefix = dataset.get('data_prefix') or ''
            paths = [dataset.get('ann_file') or '']
            paths += prefix.values() if isinstance(prefix, dict) else [prefix]
            for path in [os.path.join(root, path) for path in paths if isinstance(path, str)]:
                if path and '://' not in path and not os.path.exists(path):
                    source = DATA_SOURCES.get(str(dataset.get('type')).split('.')[-1])
                    hint = f'{source} under {root or path}' if source else 'put the data there'
                    raise UsageError(
                        f'no data at {path}: {hint}, or set {dataloader}.dataset.data_root in '
                        '--cfg-options.'
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
