import os
from collections import deque
from types import SimpleNamespace

import pytest
from helpers.programs import forget_runs
from helpers.small_run import Nothing, make_runner
from mmengine.fileio import get_file_backend
from mmengine.hooks import CheckpointHook

from mmvanilla import UsageError
from mmvanilla.checkpoint import load_checkpoint
from mmvanilla.engine import AtomicCheckpointHook


def make_hook(tmp_path, **kwargs):
    hook = AtomicCheckpointHook(interval=1, max_keep_ckpts=1, **kwargs)
    hook.out_dir = str(tmp_path)
    hook.keep_ckpt_ids = deque([1], 1)
    hook.file_backend = get_file_backend(hook.out_dir, backend_args=hook.backend_args)
    return hook


def write_file(path):
    path.write_text('weights')


def write_folder(path):
    """As DeepSpeed and other sharded strategies do."""
    path.mkdir(parents=True)
    for rank in (0, 1):
        (path / f'rank_{rank}.pt').write_text('weights')


@pytest.mark.parametrize('write', [write_file, write_folder])
@pytest.mark.parametrize('name', ['epoch_{}.pth', 'own-{}'])
def test_old_checkpoint_outlives_the_writing(write, name, tmp_path):
    old, new = name.format(1), name.format(2)
    write(tmp_path / old)
    hook = make_hook(tmp_path)
    hook.by_epoch, hook.filename_tmpl = True, name
    seen = []

    def save_checkpoint(out_dir, filename, *args, **kwargs):
        seen.append(sorted(os.listdir(out_dir)))
        if not (tmp_path / filename).exists():
            write(tmp_path / filename)

    runner = SimpleNamespace(
        work_dir=str(tmp_path),
        save_checkpoint=save_checkpoint,
        message_hub=SimpleNamespace(update_info=lambda *args: None),
    )
    hook._save_checkpoint_with_step(runner, 2, {})
    assert seen == [[old]]
    assert sorted(os.listdir(tmp_path)) == sorted([new, 'last_checkpoint'])
    hook._save_checkpoint_with_step(runner, 2, {})  # again, as when it is also the best
    assert sorted(os.listdir(tmp_path)) == sorted([new, 'last_checkpoint'])


def test_interrupted_writing_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    backend = make_hook(tmp_path).file_backend
    backend.put(b'whole', tmp_path / 'a.pth')
    monkeypatch.setattr(os, 'replace', lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        backend.put(b'other', tmp_path / 'a.pth')
    assert (tmp_path / 'a.pth').read_bytes() == b'whole'


def test_remote_folders_keep_their_backend():
    assert AtomicCheckpointHook(out_dir='s3://bucket/run').backend_args is None
    assert issubclass(AtomicCheckpointHook, CheckpointHook)


class Scores(Nothing):
    """One score for each validation; ``runner.epoch`` counts them."""

    def __init__(self, scores, runner):
        super().__init__()
        self.scores, self.runner, self.seen = scores, runner, []

    def compute_metrics(self, results):
        self.seen.append(self.runner.epoch)
        return dict(one=self.scores[self.runner.epoch - 1], other=-self.runner.epoch)


def train(work_dir, scores=(3, 1, 4, 2), resume=None, **checkpoint):
    """Trains four epochs; returns those that were validated."""
    forget_runs()
    checkpoint = {'save_best': 'one', 'rule': 'greater', 'max_keep_ckpts': 1, **checkpoint}
    runner = make_runner(work_dir, checkpoint=checkpoint, load_from=resume, resume=True)
    metric = Scores(scores, runner)
    runner._val_evaluator = [metric]
    runner.train()
    return metric.seen


def names(work_dir):
    return sorted(path.name for path in work_dir.glob('*.pth*'))


class Killed(BaseException):
    pass


def killed(monkeypatch, number, work_dir, **kwargs):
    """Trains until the file operation of that number; nothing is done after it."""
    count = 0

    def stop(*args):
        nonlocal count
        count += 1
        if count >= number:
            raise Killed
        return original.pop(0)(*args)

    with monkeypatch.context() as patch:
        original = []
        for owner, name in ((os, 'replace'), (os, 'remove')):
            function = getattr(owner, name)

            def act(*args, function=function):
                original.append(function)
                return stop(*args)

            patch.setattr(owner, name, act)
        with pytest.raises(Killed):
            train(work_dir, **kwargs)


FILES = ['best_one_epoch_3.pth', 'epoch_4.pth', 'epoch_4_deploy.pth']


# 1 writes epoch 1, 2 its best, 3 epoch 1 again, 4 epoch 2, 5 removes epoch 1, 6 writes epoch 3,
# 7 removes epoch 2, 8 writes the best, 9 epoch 3 again, 10 removes the old best.
@pytest.mark.parametrize('number', [2, 5, 8, 10])
def test_a_killed_run_loses_nothing(number, monkeypatch, tmp_path):
    killed(monkeypatch, number, tmp_path)
    if number > 2:
        assert [name for name in names(tmp_path) if name.startswith('best_')]
    epoch = {2: 1, 5: 2, 8: 3, 10: 3}[number]
    # The validation that was due comes first; the third had been done before the last kill.
    assert train(tmp_path) == [*range(4 if number == 10 else epoch, 5)]
    assert names(tmp_path) == FILES
    best = load_checkpoint(tmp_path / 'best_one_epoch_3.pth')
    assert best['message_hub']['runtime_info']['best_score'] == 4
    assert train(tmp_path) == [4] and names(tmp_path) == FILES


def test_the_best_of_a_killed_run_is_kept(monkeypatch, tmp_path):
    """It is of a later epoch than the checkpoint, and the new run does not find it again."""
    killed(monkeypatch, 7, tmp_path, interval=2, scores=(3, 4, 9, 2))
    best = ['best_one_epoch_2.pth', 'best_one_epoch_3.pth']
    assert [name for name in names(tmp_path) if not name.endswith('tmp')] == [*best, 'epoch_2.pth']
    assert train(tmp_path, scores=(3, 4, 5, 2), interval=2) == [3, 4]
    assert names(tmp_path) == FILES


def test_a_name_without_a_number():
    with pytest.raises(UsageError, match="filename_tmpl='last.pth' has no {} for the number"):
        AtomicCheckpointHook(filename_tmpl='last.pth')


def test_a_metric_that_does_not_exist(tmp_path):
    with pytest.raises(UsageError, match="save_best='ones' .* one, other: did you mean 'one'"):
        train(tmp_path, save_best='ones')
