"""Checkpoint files: read without running code from them, written whole or not at all."""

import os
import re
import secrets
from collections import OrderedDict
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, Mapping, Optional, Union
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from torch import Tensor

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from .errors import UsageError
from .safe_reading import read_safely
from .stand_ins import RefusedError

TEMPORARY = '.mmvanilla.tmp'


def load_checkpoint(path: Union[str, Path]) -> Dict[str, Any]:
    """Reads a checkpoint, without running code from it; its tensors are on the CPU.

    Args:
        path: File path, or http(s) address; a downloaded file is kept in torch hub's cache.

    Raises:
        UsageError: if the file is absent, cut off, or holds objects that are not on the allow-list.
    """
    try:
        file = _download(str(path)) if str(path).startswith(('http://', 'https://')) else path
        file = Path(file).expanduser()
        checkpoint = read_safely(file)
    except FileNotFoundError:
        raise UsageError(f'checkpoint {path} does not exist: check the path.') from None
    except (URLError, PermissionError) as error:
        raise UsageError(f'checkpoint {path} cannot be read: {error}.') from error
    except Exception as error:
        if not isinstance(error, RefusedError):
            cached = f', after deleting {file}' if str(file) != str(path) else ''
            raise UsageError(
                f'checkpoint {path} is not whole or not a checkpoint: get it again{cached}.'
            ) from error
        what = re.sub(r'[^ -~]', '?', str(error))[:100]  # text of the file's
        raise UsageError(
            f'checkpoint {path} is refused: it holds {what}, which is not read, since files may '
            'do harm by it; use a checkpoint of tensors and plain values.'
        ) from None
    if not isinstance(checkpoint, Mapping):
        raise UsageError(
            f'checkpoint {path} holds a {type(checkpoint).__name__}, not a dict of weights.'
        )
    return checkpoint


def _download(address: str) -> Path:
    path = Path(torch.hub.get_dir(), 'checkpoints', Path(urlparse(address).path).name)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(address, str(path))
    return path


def get_state_dict(checkpoint: Mapping[str, Any]) -> Dict[str, Tensor]:
    """The weights inside a checkpoint of mmengine, or of the authors (EMA weights first).

    Their keys come without what DDP and compiled networks put into them.
    """
    for key in ('state_dict', 'model_ema', 'model'):
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
            break
    if not all(isinstance(key, str) for key in checkpoint):
        raise UsageError('the checkpoint holds no weights: its keys are not names.')
    weights = OrderedDict(
        (re.sub(r'^(module\.)+', '', key.replace('_orig_mod.', '')), value)
        for key, value in checkpoint.items()
    )
    if hasattr(checkpoint, '_metadata'):  # by which modules know weights of their older versions
        weights._metadata = checkpoint._metadata
    return weights


def is_resumable(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint holds a run's state; deploy files and mmengine's best ones do not."""
    return {'meta', 'message_hub', 'optimizer'} <= checkpoint.keys()


@contextmanager
def replace_when_whole(path: Union[str, Path]) -> Iterator[Path]:
    """Gives a temporary name beside ``path`` to write to, and renames it to ``path`` at the end.

    A process killed on the way leaves whatever was at ``path`` as it was; what it leaves in the
    folder is removed when the next file is written there. The name cannot be guessed, and the file
    is new: no planted link is followed, and two writers do not mix.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path.parent)
    with _new_file(path) as file:
        temporary = Path(file.name)
        try:
            yield temporary
            with open(temporary, 'rb+') as written:  # to write, or Windows would not flush it
                os.fsync(written.fileno())
            if fcntl is None:
                file.close()  # Windows does not rename open files
            os.replace(temporary, path)
        finally:
            file.close()
            with suppress(FileNotFoundError):
                temporary.unlink()


def _new_file(path: Path) -> BinaryIO:
    """An empty file beside ``path``, locked as long as it is open."""
    while True:
        file = open(path.with_name(f'{path.name}.{secrets.token_hex(8)}{TEMPORARY}'), 'xb')
        _lock(file, wait=True)
        if os.path.exists(file.name):  # not taken for a leftover before it was locked
            return file
        file.close()


def _remove_leftovers(folder: Path) -> None:
    """Removes temporary files that no process has locked; they stay where locks do not work."""
    for path in folder.glob(f'*{TEMPORARY}'):
        if not path.is_symlink():
            with suppress(OSError), open(path, 'rb+') as file:
                if _lock(file, wait=False):
                    path.unlink()


def _lock(file: BinaryIO, wait: bool) -> bool:
    """Whether the file could be locked, against other processes and other openings of it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (OSError, AttributeError):  # held by another, or a file system or Windows without locks
        return False
    return True


def latest_whole_checkpoint(work_dir: Union[str, Path]) -> Optional[Path]:
    """The newest whole checkpoint in ``work_dir`` that a run can be resumed from, None if none can.

    mmengine's ``last_checkpoint`` file is not asked alone: a run killed while writing may have left
    it, or the file that it names, cut off.
    """
    work_dir = Path(work_dir)
    candidates = set(work_dir.glob('*.pth'))
    pointer = work_dir / 'last_checkpoint'
    if pointer.is_file() and Path(pointer.read_text().strip()).is_file():
        candidates.add(Path(pointer.read_text().strip()))
    for path in sorted(candidates, key=lambda p: (p.stat().st_mtime_ns, p.name), reverse=True):
        try:
            if is_resumable(load_checkpoint(path)):
                return path
        except UsageError as error:
            if isinstance(error.__context__, RefusedError):
                raise  # it is whole: starting anew would write over it
    return None
