"""mmengine's CheckpointHook, made safe against kills at any moment."""

import os
import re
import secrets
from contextlib import contextmanager, suppress
from inspect import signature
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, Union

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from ...arguments import accepted_names, check_names, nearest
from ...checkpoint import latest_whole_checkpoint, load_checkpoint, replace_when_whole
from ...checkpoint.resuming import RUN_ID, run_id_of, step_in_name
from ...errors import UsageError
from ...registry import HOOKS, register

# In the message hub: the files that are removed once a checkpoint is written, and the iteration of
# the last validation whose outcome it holds.
EXPIRED, VALIDATED = 'mmvanilla_expired', 'mmvanilla_validated'


@register_backend('mmvanilla_atomic', force=True)  # a notebook may reload this module
class AtomicLocalBackend(LocalBackend):
    """Local files that are renamed into place once they are complete."""

    def put(self, obj: bytes, filepath: Union[str, Path]) -> None:
        with replace_when_whole(filepath) as temporary:
            temporary.write_bytes(obj)


class _RemovingLater:
    """A file backend that only notes what it should remove."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.due: List[Tuple[Callable, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, path: Any) -> None:
        self.due.append((self.backend.remove, path))

    def rmtree(self, path: Any) -> None:
        self.due.append((self.backend.rmtree, path))


@register(HOOKS)
class AtomicCheckpointHook(CheckpointHook):
    """Writes each checkpoint completely or not at all, and removes old ones only after that.

    mmengine's hook writes in place, and removes an old checkpoint before it writes the new one, the
    best one of ``save_best`` too. With this hook, a run killed between the two keeps both; the run
    that resumes removes what is left over. It also validates first if that was due at the epoch or
    iteration that it resumes from, and keeps the best checkpoint that the killed run has written.
    To resume without a file name (``resume=True``), it takes the latest checkpoint that is whole,
    and never begins again where there are checkpoints. Arguments as in mmengine's hook.
    """

    def __init__(self, *args: Any, backend_args: Optional[dict] = None, **kwargs: Any) -> None:
        # mmengine hands on the names that its hook does not know, at the end of an epoch.
        known = [*accepted_names([Runner.save_checkpoint]), *signature(CheckpointHook).parameters]
        check_names(kwargs, known, 'CheckpointHook')
        super().__init__(*args, **kwargs)
        if not re.search('{.*}', self.filename_tmpl or '{}'):
            raise UsageError(
                f'filename_tmpl={self.filename_tmpl!r} has no {{}} for the number, so each '
                'checkpoint would replace the last: add it.'
            )
        local = '://' not in str(self.out_dir or '') and self.file_client_args is None
        self.backend_args = backend_args or (dict(backend='mmvanilla_atomic') if local else None)
        self.adopts_best = False  # whether best checkpoints of a killed run may be there

    def before_run(self, runner: Runner) -> None:
        if runner._resume and runner._load_from is None:
            latest = latest_whole_checkpoint(runner.work_dir, self.out_dir, self.filename_tmpl)
            runner._load_from = latest and str(latest)

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        if self.by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
            runner.logger.warning(
                'The train loop counts iterations, but the checkpoint hook epochs: the first '
                'checkpoint is written at the end. Set by_epoch=False in default_hooks.checkpoint.'
            )
        if RUN_ID not in runner.message_hub.runtime_info or not runner._resume:
            run_id = [secrets.token_hex(8)]
            broadcast_object_list(run_id)
            runner.message_hub.update_info(RUN_ID, run_id[0])
        if not runner._resume:
            return
        resumed_from = os.path.dirname(os.path.abspath(str(runner._load_from)))
        if resumed_from == os.path.abspath(str(self.out_dir)):
            self.last_ckpt = runner._load_from  # which a new best score is written to
            for name in runner.message_hub.runtime_info.get(EXPIRED) or ():
                self._remove_of_run(runner, name)
        self.adopts_best = True
        validated = runner.message_hub.runtime_info.get(VALIDATED) == runner.iter
        if _validation_is_due(runner) and not validated:
            runner.logger.info('The validation of the checkpoint comes first.')
            runner.val_loop.run()

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        expired = [os.path.basename(path) for _, path in getattr(self.file_backend, 'due', ())]
        if 0 < self.max_keep_ckpts == len(self.keep_ckpt_ids) and self.keep_ckpt_ids[-1] != step:
            expired.append(self.filename_tmpl.format(self.keep_ckpt_ids[0]))
        runner.message_hub.update_info(EXPIRED, expired)
        with self._removals_last():
            super()._save_checkpoint_with_step(runner, step, meta)

    def _save_best_checkpoint(self, runner: Runner, metrics: Dict[str, Any]) -> None:
        if not self.save_best:
            return
        adopted = []
        if self.adopts_best:
            self.adopts_best = False
            if 'auto' in self.key_indicators:
                self._init_rule(self.rules, [next(iter(metrics))])
            adopted = [key for key in self.key_indicators if self._adopt_best(runner, key)]
        unknown = next((key for key in self.key_indicators if key not in metrics), 'auto')
        if unknown != 'auto':
            near = nearest(unknown, metrics)
            raise UsageError(
                f'save_best={unknown!r} is not among the metrics {", ".join(metrics)}'
                + (f': did you mean {near!r}?' if near else '.')
            )
        runner.message_hub.update_info(VALIDATED, runner.iter)
        with self._removals_last():
            super()._save_best_checkpoint(runner, metrics)
        if adopted and self.last_ckpt is not None:  # as after a new best score
            step = runner.epoch if self.by_epoch else runner.iter
            meta = dict(epoch=runner.epoch, iter=runner.iter)
            self._save_checkpoint_with_step(runner, step, meta)

    def _adopt_best(self, runner: Runner, key: str) -> bool:
        """Takes the best of the checkpoints that this run has left for an indicator.

        The others of this run are removed, except those that cannot be read.

        Returns:
            Whether it is another than the run knew.
        """
        suffix = '' if len(self.key_indicators) == 1 else f'_{key}'
        scores = {}
        if is_main_process() and isinstance(self.file_backend, LocalBackend):
            scores = self._scores_of_files(runner, key, f'best_score{suffix}')
        best = None
        for path, score in scores.items():
            if best is None or self.is_better_than[key](score, scores[best]):
                best = path
        everywhere = [best and (best, scores[best])]
        broadcast_object_list(everywhere)
        (found,) = everywhere
        if found is None:
            return False
        best, score = found
        before = runner.message_hub.runtime_info.get(f'best_score{suffix}')
        runner.message_hub.update_info(f'best_score{suffix}', score)
        runner.message_hub.update_info(f'best_ckpt{suffix}', best)
        if suffix:
            self.best_ckpt_path_dict[key] = best
        else:
            self.best_ckpt_path = best
        for path in scores:
            if path != best:
                self.file_backend.remove(path)
        return before is None or before != score

    def _scores_of_files(self, runner: Runner, key: str, score: str) -> Dict[str, Any]:
        """The scores in this run's best checkpoints of an indicator, by path."""
        template = f'best_{key}_{self.filename_tmpl}'.replace('/', '_')
        scores = {}
        for name in sorted(os.listdir(self.out_dir)):
            path = self.file_backend.join_path(self.out_dir, name)
            if step_in_name(name, template) is not None and _is_of_run(runner, path):
                with suppress(LookupError):
                    scores[path] = load_checkpoint(path)['message_hub']['runtime_info'][score]
        return scores

    def _remove_of_run(self, runner: Runner, name: str) -> None:
        """Removes a checkpoint of this run: a file, or the folder of a sharded strategy."""
        path = self.file_backend.join_path(self.out_dir, name)
        if is_main_process() and self.file_backend.isdir(path):
            self.file_backend.rmtree(path)
        elif is_main_process() and _is_of_run(runner, path):
            self.file_backend.remove(path)

    @contextmanager
    def _removals_last(self) -> Iterator[None]:
        """What is removed inside is removed at the end, if all goes well."""
        backend = self.file_backend
        self.file_backend = later = _RemovingLater(backend)
        try:
            yield
        finally:
            self.file_backend = backend
        mine = {self.last_ckpt, getattr(self, 'best_ckpt_path', None)}
        mine.update(getattr(self, 'best_ckpt_path_dict', {}).values())
        for remove, path in later.due:
            # Not what was written again, nor files in the folder that a run was copied from.
            folders = {os.path.abspath(os.path.dirname(path)), os.path.abspath(self.out_dir)}
            if path not in mine and len(folders) == 1:
                remove(path)


def _is_of_run(runner: Runner, path: str) -> bool:
    """Whether a file is a checkpoint that this run wrote, and that can be read."""
    try:
        checkpoint = load_checkpoint(path, values=False)
    except UsageError:
        return False
    return run_id_of(checkpoint) == runner.message_hub.get_info(RUN_ID)


def _validation_is_due(runner: Runner) -> bool:
    """Whether the train loop validates at the epoch or iteration at which a run begins."""
    loop = runner.train_loop
    known = isinstance(loop, (EpochBasedTrainLoop, IterBasedTrainLoop))
    if runner.val_loop is None or not known:
        return False
    loop._decide_current_val_interval()
    if isinstance(loop, IterBasedTrainLoop):
        step, last = loop.iter, loop.max_iters
    else:
        step, last = loop.epoch, loop.max_epochs
        if loop.iter != step * len(loop.dataloader):  # written in the middle of an epoch
            return False
    return 0 < step >= loop.val_begin and (step % loop.val_interval == 0 or step == last)
