"""mmengine's CheckpointHook, made safe against kills at any moment."""

from pathlib import Path
from typing import Any, Optional, Union

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook

from ...checkpoint import replace_when_whole
from ...registry import HOOKS, register


@register_backend('mmvanilla_atomic', force=True)  # a notebook may reload this module
class AtomicLocalBackend(LocalBackend):
    """Local files that are renamed into place once they are complete."""

    def put(self, obj: bytes, filepath: Union[str, Path]) -> None:
        with replace_when_whole(filepath) as temporary:
            temporary.write_bytes(obj)


@register(HOOKS)
class AtomicCheckpointHook(CheckpointHook):
    """Writes each checkpoint completely or not at all, and removes an old one only after that.

    mmengine's hook writes in place, and under ``max_keep_ckpts=1`` deletes the old checkpoint
    first. With this hook, a run killed between the two keeps both. The copy of ``save_best`` is
    also written completely, but replaces the old one as in mmengine. Arguments as in its hook.
    """

    def __init__(self, *args: Any, backend_args: Optional[dict] = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        local = '://' not in str(self.out_dir or '')
        self.backend_args = backend_args or (dict(backend='mmvanilla_atomic') if local else None)

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict) -> None:
        expired = None
        if 0 < self.max_keep_ckpts == len(self.keep_ckpt_ids) and self.keep_ckpt_ids[-1] != step:
            expired = self.keep_ckpt_ids.popleft()
        super()._save_checkpoint_with_step(runner, step, meta)
        if expired is not None and is_main_process():
            path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(expired))
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):  # of DeepSpeed and other sharded strategies
                self.file_backend.rmtree(path)
