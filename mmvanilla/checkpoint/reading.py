"""Reading checkpoints without running code from them."""

import re
from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Union
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from torch import Tensor

from ..errors import UsageError
from .safe_reading import read_safely
from .stand_ins import RefusedError


def load_checkpoint(path: Union[str, Path]) -> Dict[str, Any]:
    """Reads a checkpoint without running code from it; its tensors are on the CPU.

    Args:
        path: File path, or http(s) address; torch hub's cache keeps downloaded files.

    Raises:
        UsageError: if the file is absent, truncated, or holds objects that are not allowed.
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
                f'checkpoint {path} is truncated or not a checkpoint: download it again{cached}.'
            ) from error
        what = re.sub(r'[^ -~]', '?', str(error))[:100]  # the text is from the file
        raise UsageError(
            f'checkpoint {path} is refused: it holds {what}, which could run code or read '
            'memory; use a checkpoint of tensors and plain values.'
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

    The prefixes of DDP and compiled networks are removed from the keys.
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
    if hasattr(checkpoint, '_metadata'):  # tells modules which version their weights are
        weights._metadata = checkpoint._metadata
    return weights


def is_resumable(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a run can be resumed from it, unlike fused and best checkpoints."""
    return {'meta', 'message_hub', 'optimizer'} <= checkpoint.keys()


def latest_whole_checkpoint(work_dir: Union[str, Path]) -> Optional[Path]:
    """The newest complete checkpoint in ``work_dir`` that a run can be resumed from, or None.

    mmengine's ``last_checkpoint`` file is not enough: a run that was killed while writing may have
    left it, or the file that it names, truncated.
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
                raise  # it is complete: a new run would overwrite it
    return None
