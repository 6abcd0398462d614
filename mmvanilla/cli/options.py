"""Command lines: the options of OpenMMLab's tools, the configs that they change, and errors."""

import argparse
import logging
import os
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Optional, Union

import torch
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger

from ..config import name_types
from ..errors import UsageError, reason
from ..model_index import find_root
from .checks import SETTINGS, check_settings
from .explanations import NO_ROOM, chain, explain

# The extra of setup.py for each package of base configs, as mmengine and onedl-mmengine call it.
EXTRAS = {'mmsegmentation': 'segmentation', 'mmseg': 'onedl-segmentation'}


def config_file(path: str) -> str:
    """The file that a command line names, by its path or, in the package, as ``mmvanilla::...``."""
    package, _, name = path.partition('::')
    return str(find_root() / 'configs' / name) if package == 'mmvanilla' else path


def folder_name(text: str) -> str:
    """A folder that a command line names; an unset variable of a shell is none."""
    if not text:
        raise argparse.ArgumentTypeError('is empty: name a folder')
    return text


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that OpenMMLab's train and test tools share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', type=config_file, help='config file, or mmvanilla::NAME')
    parser.add_argument(
        '--work-dir', type=folder_name, help='folder for logs, checkpoints and results'
    )
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher',
    )
    # torch.distributed.launch passes --local-rank, in older versions --local_rank.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``--cfg-options``, as OpenMMLab's tools have it."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config, as key=value; lists as key="[a,b]" or key=a,b',
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds ``--device``; the default is a GPU if there is one."""
    devices = ['cpu', 'cuda'] if torch.cuda.is_available() else ['cpu']
    parser.add_argument(
        '--device', choices=devices, default=devices[-1], help='by default a GPU if there is one'
    )


def log_errors_only() -> None:
    """Silences the messages of models that a program will build."""
    MMLogger.get_instance('mmvanilla', log_level='ERROR')


def load_config(args: argparse.Namespace) -> Config:
    """The config with the common command-line options merged in."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args.config, args.cfg_options)
    if 'launcher' not in (args.cfg_options or {}):
        cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    return cfg


def read_config(path: Union[str, Path], options: Optional[dict] = None) -> Config:
    """Reads a config file, and merges ``--cfg-options`` into it.

    Raises:
        UsageError: if it does not exist, or if a package of its bases is not installed.
    """
    if not Path(path).is_file():
        raise UsageError(f'config {path} does not exist: check the path.')
    if Path(path).suffix == '.pth':
        raise UsageError(f'{path} is a checkpoint: the config comes first.')
    try:
        with warnings.catch_warnings():  # mmengine repeats this warning for each base of a package
            warnings.filterwarnings('ignore', 'pkg_resources is deprecated', UserWarning)
            cfg = Config.fromfile(path)
    except ModuleNotFoundError as error:
        if error.name == 'pkg_resources':
            raise UsageError(
                'mmengine needs pkg_resources to read mmdet:: and mmpretrain:: bases, which newer '
                'setuptools lack: pip install "setuptools<81".'
            ) from None
        if error.name is None:  # raised by mmengine, about the package of a base
            extra = EXTRAS.get(str(error).split()[0])
            mend = f' (pip install -e ".[{extra}]" in the folder of mmvanilla)' if extra else ''
            raise UsageError(f'config {path} cannot be read: {error}{mend}.') from None
        raise UsageError(f'config {path} cannot be read: {reason(error)}.') from error
    except Exception as error:
        if isinstance(error, MemoryError) or getattr(error, 'errno', None) in NO_ROOM:
            raise
        raise UsageError(f'config {path} cannot be read: {reason(error)}.') from error
    name_types(cfg)  # so that mmengine can read what is written of it to checkpoints and logs
    try:
        cfg.merge_from_dict(options or {})
    except Exception as error:
        raise UsageError(f'--cfg-options do not fit config {path}: {reason(error)}.') from error
    check_settings(cfg)
    for name in sorted({key.split('.')[0] for key in options or {}} - set(SETTINGS)):
        print(
            f'warning: --cfg-options changes {name}, which is a variable of the config: where it '
            'was used keeps the former value.',
            file=sys.stderr,
        )
    return cfg


@contextmanager
def one_sentence_errors(interrupted: str = 'interrupted.') -> Iterator[None]:
    """Ends the process with one sentence about an error, unless it is in the user's own code.

    Args:
        interrupted: What to say after Ctrl-C.
    """
    logging.raiseExceptions = False  # a full disk ends the run once, not at each line of its log
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        # mmengine makes a SyntaxError of any exception while it formats a config.
        if any(isinstance(each, KeyboardInterrupt) for each in chain(error)):
            print(interrupted, file=sys.stderr)
            sys.exit(130)
        sentence = None if os.environ.get('MMVANILLA_TRACEBACK') else explain(error)
        if sentence is None:
            raise
        sys.exit(f'error: {sentence}')
