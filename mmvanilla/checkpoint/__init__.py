"""Checkpoint files: read without running code from them, written completely or not at all."""

from .reading import get_state_dict, is_resumable, latest_whole_checkpoint, load_checkpoint
from .writing import replace_when_whole

__all__ = [
    'get_state_dict',
    'is_resumable',
    'latest_whole_checkpoint',
    'load_checkpoint',
    'replace_when_whole',
]
