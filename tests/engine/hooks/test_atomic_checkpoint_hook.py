import os
from collections import deque
from types import SimpleNamespace

import pytest
from mmengine.fileio import get_file_backend
from mmengine.hooks import CheckpointHook

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
