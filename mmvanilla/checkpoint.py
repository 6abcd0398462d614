"""Checkpoint files: read without running code from them, written whole or not at all.

torch >= 2.6 reads pickles with an allow-list. mmengine's training checkpoints hold a few objects
that are not on it (its log history, and numpy's arrays and scalars inside), so that mmengine 0.10.7
cannot load its own files. Importing this module puts exactly those on the list.
"""

import os
import pickle
import re
import zipfile
from argparse import Namespace
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Optional, Union
from urllib.error import URLError

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor

from .errors import UsageError

_STATISTICS = ('min', 'max', 'mean', 'current')


def _history_buffer_statistic(owner: Any, name: str) -> Any:
    """Stands in for ``getattr``, by which HistoryBuffer pickles its statistics, and no more."""
    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise pickle.UnpicklingError(f'getattr of {name!r} is not allowed in a checkpoint')
    return getattr(HistoryBuffer, name)


_SAFE_GLOBALS = [
    HistoryBuffer,
    (_history_buffer_statistic, 'builtins.getattr'),
    np.ndarray,
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Int64DType,
    # numpy 2 moved these two; files written by numpy 1 name the old place
    *(
        (function, f'{module}.multiarray.{name}')
        for name, function in (
            ('_reconstruct', np.ndarray.__reduce__(np.empty(0))[0]),
            ('scalar', np.float64(0).__reduce__()[0]),
        )
        for module in ('numpy._core', 'numpy.core')
    ),
    Namespace,  # the authors' files keep their command line: plain attributes
]
torch.serialization.add_safe_globals(_SAFE_GLOBALS)  # for programs that read with torch alone


def load_checkpoint(
    path: Union[str, Path], map_location: Any = 'cpu', mmap: bool = False
) -> Dict[str, Any]:
    """Reads a checkpoint from a local file or a http(s) address, without running code from it.

    Args:
        path: File path or address; a downloaded file is kept in torch hub's cache.
        map_location: As in ``torch.load``.
        mmap: Whether to leave the tensors in the file until they are used, where its format can.

    Raises:
        UsageError: if the file is absent, cut off, or holds objects that are not on the allow-list.
    """
    not_whole = f'checkpoint {path} is not whole or not a checkpoint: get it again.'
    torch.serialization.add_safe_globals(_SAFE_GLOBALS)  # onedl-mmengine takes them off after use
    try:
        if str(path).startswith(('http://', 'https://')):
            checkpoint = torch.hub.load_state_dict_from_url(
                str(path), map_location=map_location, weights_only=True
            )
        else:
            path = Path(path).expanduser()
            mmap = mmap and zipfile.is_zipfile(path)
            checkpoint = torch.load(path, map_location, weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise UsageError(f'checkpoint {path} does not exist: check the path.') from None
    except pickle.UnpicklingError as error:
        refused = re.search(r'GLOBAL ([\w.]+)|(getattr) of|but got <class .([\w.]+)', str(error))
        if refused is None:
            raise UsageError(not_whole) from error
        raise UsageError(
            f'checkpoint {path} is refused: it holds {refused[refused.lastindex]}, which could run '
            'code on loading; use a checkpoint of tensors.'
        ) from None
    except (URLError, PermissionError) as error:
        raise UsageError(f'checkpoint {path} cannot be read: {error}.') from error
    except (RuntimeError, OSError, EOFError, LookupError, ValueError, AttributeError) as error:
        raise UsageError(not_whole) from error
    if not isinstance(checkpoint, Mapping):
        raise UsageError(
            f'checkpoint {path} holds a {type(checkpoint).__name__}, not a dict of weights.'
        )
    return checkpoint


def get_state_dict(checkpoint: Mapping[str, Any]) -> Dict[str, Tensor]:
    """The weights inside a checkpoint of mmengine, or of the authors (EMA weights first).

    Their keys come without what DDP and compiled networks put into them.
    """
    for key in ('state_dict', 'model_ema', 'model'):
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
            break
    weights = OrderedDict(
        (key.replace('_orig_mod.', '').removeprefix('module.'), value)
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

    A process killed on the way leaves whatever was at ``path`` as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + '.tmp')
    try:
        yield temporary
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def latest_whole_checkpoint(work_dir: Union[str, Path]) -> Optional[Path]:
    """The newest checkpoint in ``work_dir`` that can be read and resumed from, None if none can.

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
            if is_resumable(load_checkpoint(path, mmap=True)):
                return path
        except UsageError:
            continue
    return None
