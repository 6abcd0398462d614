"""Checkpoint files: read without running code from them, written completely or not at all."""

from .reading import DamagedError, get_state_dict, load_checkpoint
from .resuming import is_resumable, latest_whole_checkpoint
from .writing import check_writable, replace_when_whole, reserve_folder

__all__ = [
    'DamagedError',
    'check_writable',
    'get_state_dict',
    'is_resumable',
    'latest_whole_checkpoint',
    'load_checkpoint',
    'replace_when_whole',
    'reserve_folder',
]
