"""Reading checkpoints without running code from them."""

import re
from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict, Mapping, Union
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from torch import Tensor

from ..errors import UsageError
from .numbers import check_numbers
from .safe_reading import read_safely
from .stand_ins import RefusedError

# Where mmengine's checkpoints, and the authors', hold weights.
WEIGHTS = ('state_dict', 'ema_state_dict', 'model', 'model_ema')


class DamagedError(UsageError):
    """A checkpoint that is cut off, or whose checksums do not match."""


def load_checkpoint(path: Union[str, Path], values: bool = True) -> Dict[str, Any]:
    """Reads a checkpoint without running code from it; its tensors are on the CPU.

    Args:
        path: File path, or http(s) address; torch hub's cache keeps downloaded files.
        values: Whether to read the numbers of the tensors. Without them it takes milliseconds, and
            finds a file that is cut off, but no other damage.

    Raises:
        DamagedError: a UsageError, if the file is cut off, or if its checksums do not match.
        UsageError: if it is absent, or holds objects that are not allowed, or weights that no
            network can have: NaN, infinite ones, negative variances.
    """
    if Path(path).is_dir():
        raise UsageError(f'checkpoint {path} is a folder: name a file in it.')
    try:
        file = _download(str(path)) if str(path).startswith(('http://', 'https://')) else path
        file = Path(file).expanduser()
        checkpoint = read_safely(file, values)
    except FileNotFoundError:
        raise UsageError(f'checkpoint {path} does not exist: check the path.') from None
    except (URLError, PermissionError) as error:
        raise UsageError(f'checkpoint {path} cannot be read: {error}.') from error
    except RefusedError as error:
        what = re.sub(r'[^ -~]', '?', str(error))[:100]  # the text is from the file
        raise UsageError(
            f'checkpoint {path} is refused: it holds {what}, which could run code or read '
            'memory; use a checkpoint of tensors and plain values.'
        ) from None
    except MemoryError:
        raise
    except Exception as error:
        cached = f', after deleting {file}' if str(file) != str(path) else ''
        damage = 'is truncated or not a checkpoint'
        if 'CRC' in str(error):
            damage = 'is damaged (its checksums differ)'
        raise DamagedError(
            f'checkpoint {path} {damage}: copy or download it again{cached}, or take another.'
        ) from error
    if not isinstance(checkpoint, Mapping):
        raise UsageError(
            f'checkpoint {path} holds a {type(checkpoint).__name__}, not a dict of weights.'
        )
    for weights in (checkpoint, *map(checkpoint.get, WEIGHTS)) if values else ():
        check_numbers(weights, f'checkpoint {path}')
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
