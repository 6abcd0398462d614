"""Checkpoint files: reading runs no code from them, writing leaves them whole or not there."""

from .reading import (
    get_state_dict,
    is_resumable,
    latest_whole_checkpoint,
    load_checkpoint,
)
from .writing import replace_when_whole

__all__ = [
    'get_state_dict',
    'is_resumable',
    'latest_whole_checkpoint',
    'load_checkpoint',
    'replace_when_whole',
]
