import argparse
import os
import pickle

import numpy as np
import pytest
import torch
from helpers.payload import Payload
from mmengine.logging import HistoryBuffer

from mmvanilla import UsageError
from mmvanilla.checkpoint import (
    DamagedError,
    get_state_dict,
    latest_whole_checkpoint,
    load_checkpoint,
    replace_when_whole,
)


class GetAttr:
    """Calls ``getattr`` on an allowed class when it is unpickled."""

    def __init__(self, owner, name):
        self.args = owner, name

    def __reduce__(self):
        return getattr, self.args


def test_training_checkpoint_loads(tmp_path):
    buffer = HistoryBuffer([1.0, 2.0, 6.0], [1, 1, 1])
    content = dict(
        message_hub=dict(log_scalars={'train/loss': buffer}, value=np.float64(0.5)),
        state_dict=dict(weight=torch.ones(2)),
        args=argparse.Namespace(lr=0.1),
    )
    torch.save(content, tmp_path / 'a.pth')
    loaded = load_checkpoint(tmp_path / 'a.pth')
    assert loaded['message_hub']['log_scalars']['train/loss'].mean() == 3.0
    assert loaded['message_hub']['log_scalars']['train/loss'].statistics('max') == 6.0
    assert loaded['message_hub']['value'] == 0.5
    assert loaded['args'].lr == 0.1


@pytest.mark.parametrize('legacy', [True, False])
def test_both_formats(tmp_path, legacy):
    both = torch.arange(8.0)
    content = dict(
        a=torch.arange(3), b=both, c=both[1::2], d=torch.empty(0), e=torch.ones(2, 3).t()
    )
    torch.save(content, tmp_path / 'a.pth', _use_new_zipfile_serialization=not legacy)
    loaded = load_checkpoint(tmp_path / 'a.pth')
    for name, value in content.items():
        assert torch.equal(loaded[name], value) and loaded[name].dtype == value.dtype
    assert loaded['b'].data_ptr() + 4 == loaded['c'].data_ptr()


@pytest.mark.parametrize('legacy', [True, False])
def test_payload_is_refused_and_not_run(tmp_path, legacy):
    target = tmp_path / 'ran'
    content = dict(state_dict={}, meta=Payload(target))
    path = tmp_path / 'evil.pth'
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UsageError, match=r'evil\.pth is refused: it holds \w+\.system'):
        load_checkpoint(path)
    assert not target.exists()


@pytest.mark.parametrize(
    ('owner', 'name'),
    [(HistoryBuffer, '__init__'), (HistoryBuffer, '__class__'), (np.dtype, 'mean')],
)
def test_getattr_gives_statistics_alone(tmp_path, owner, name):
    torch.save(dict(a=GetAttr(owner, name)), tmp_path / 'a.pth')
    with pytest.raises(UsageError, match='refused'):
        load_checkpoint(tmp_path / 'a.pth')


@pytest.mark.parametrize('keep', [0, 10, 1000, -1])
@pytest.mark.parametrize('legacy', [True, False])
def test_truncated(tmp_path, keep, legacy):
    path = tmp_path / 'cut.pth'
    torch.save(dict(a=torch.ones(1000)), path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UsageError, match=r'cut\.pth is truncated'):
        load_checkpoint(path)


def test_absent_or_something_else(tmp_path):
    with pytest.raises(UsageError, match=r'none\.pth does not exist'):
        load_checkpoint(tmp_path / 'none.pth')
    with pytest.raises(UsageError, match='is a folder: name a file'):
        load_checkpoint(tmp_path)
    torch.save([1], tmp_path / 'list.pth')
    with pytest.raises(UsageError, match='holds a list'):
        load_checkpoint(tmp_path / 'list.pth')
    (tmp_path / 'plain.pth').write_bytes(pickle.dumps(dict(a=1)))
    with pytest.raises(UsageError, match=r'plain\.pth'):
        load_checkpoint(tmp_path / 'plain.pth')


def test_unreachable_address():
    with pytest.raises(UsageError, match=r'none\.pth cannot be read: .*refused'):
        load_checkpoint('http://127.0.0.1:9/none.pth')


@pytest.mark.parametrize(
    'checkpoint',
    [
        dict(state_dict={'a': 1}, meta={}),
        dict(model={'a': 0}, model_ema={'a': 1}),
        dict(model={'a': 1}, model_ema=None),
        {'module.a': 1},
    ],
)
def test_get_state_dict(checkpoint):
    assert get_state_dict(checkpoint) == {'a': 1}


def test_replace_when_whole(tmp_path):
    path = tmp_path / 'folder/a.pth'
    with replace_when_whole(path) as temporary:
        temporary.write_text('first')
    with pytest.raises(KeyboardInterrupt), replace_when_whole(path) as temporary:
        temporary.write_text('sec')
        raise KeyboardInterrupt
    assert path.read_text() == 'first'
    assert os.listdir(path.parent) == ['a.pth']


def save_resumable(path, epoch, iteration, **kwargs):
    meta = dict(epoch=epoch, iter=iteration)
    content = dict(state_dict={}, message_hub={}, meta=meta, optimizer={})
    torch.save({**content, **kwargs}, path)


@pytest.mark.parametrize('names', [('epoch_9', 'epoch_10'), ('epoch_2', 'iter_1')])
def test_the_latest_checkpoint_is_the_one_that_says_so(names, tmp_path):
    """Neither the times of the files, as after copying a folder, nor their names decide."""
    assert latest_whole_checkpoint(tmp_path) is None
    for age, name in enumerate(reversed(names)):
        save_resumable(tmp_path / f'{name}.pth', names.index(name) + 1, 10)
        os.utime(tmp_path / f'{name}.pth', (1000 + age, 1000 + age))
    torch.save(dict(state_dict={}), tmp_path / 'epoch_20_deploy.pth')  # not for resuming
    torch.save(dict(state_dict={}, message_hub={}, meta={}), tmp_path / 'best_1_epoch_20.pth')
    torch.save(torch.nn.Linear(2, 2), tmp_path / 'model.pth')  # a user's
    (tmp_path / 'last_checkpoint').write_text('')  # killed while writing it
    assert latest_whole_checkpoint(tmp_path).stem == names[-1]


def test_of_two_runs_the_last_one_goes_on(tmp_path):
    """A run that began again where another had ended is not mixed with it."""
    for epoch, run in ((1, 'new'), (2, 'old'), (3, 'old')):
        hub = dict(runtime_info=dict(mmvanilla_run_id=run))
        save_resumable(tmp_path / f'epoch_{epoch}.pth', epoch, 0, message_hub=hub)
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/epoch_1.pth')
    assert latest_whole_checkpoint(tmp_path).name == 'epoch_1.pth'


def test_names_and_kinds_that_mmengine_allows(tmp_path):
    save_resumable(tmp_path / 'own-7.pth', 7, 0)
    assert latest_whole_checkpoint(tmp_path) is None
    assert latest_whole_checkpoint(tmp_path, template='own-{}.pth').name == 'own-7.pth'
    content = dict(state_dict={}, meta={}, message_hub={})
    torch.save(content, tmp_path / 'epoch_2.pth')  # with save_optimizer=False
    assert latest_whole_checkpoint(tmp_path).name == 'epoch_2.pth'
    (tmp_path / 'epoch_3.pth').mkdir()  # of a sharded strategy
    for last in (str(tmp_path / 'epoch_3.pth'), 's3://bucket/epoch_9.pth'):
        (tmp_path / 'last_checkpoint').write_text(last)
        assert latest_whole_checkpoint(tmp_path) == last


@pytest.mark.parametrize('damage', ['cut', 'flipped'])
def test_damaged_checkpoints_are_set_aside(damage, tmp_path):
    for epoch in (1, 2, 3):
        save_resumable(tmp_path / f'epoch_{epoch}.pth', epoch, 0, more=torch.ones(99))
    for epoch in (1, 3):
        path = tmp_path / f'epoch_{epoch}.pth'
        content = path.read_bytes()
        ones = np.ones(99, np.float32).tobytes()
        new = content[:-9] if damage == 'cut' else content.replace(ones, ones[:-1] + b'!')
        path.write_bytes(new)
    assert latest_whole_checkpoint(tmp_path).name == 'epoch_2.pth'
    # The first is not in the way of the run that goes on.
    names = ['epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth.damaged']
    assert sorted(os.listdir(tmp_path)) == names


def test_checkpoints_in_another_folder(tmp_path):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'out/run').mkdir(parents=True)
    save_resumable(tmp_path / 'out/run/epoch_1.pth', 1, 0)
    assert latest_whole_checkpoint(tmp_path / 'run') is None
    assert latest_whole_checkpoint(tmp_path / 'run', f'{tmp_path}/out').name == 'epoch_1.pth'
    # A copy of a folder is by itself.
    (tmp_path / 'run/last_checkpoint').write_text(str(tmp_path / 'out/run/epoch_1.pth'))
    assert latest_whole_checkpoint(tmp_path / 'run') is None


def write_diverged(path):
    torch.save(dict(state_dict={'a.weight': torch.tensor([1, float('nan')])}), path)


@pytest.mark.parametrize(
    ('write', 'expected'),
    [
        (lambda path: torch.save(dict(state_dict={}), path), 'epoch_3.pth holds only weights'),
        (lambda path: path.write_bytes(b'PK cut'), 'epoch_3.pth is truncated'),
        (write_diverged, 'epoch_3.pth holds only weights'),
        (lambda path: path.symlink_to('none'), 'epoch_3.pth does not exist'),
    ],
    ids=['weights', 'cut', 'diverged', 'dangling'],
)
def test_a_run_never_begins_again_over_checkpoints(write, expected, tmp_path):
    write(tmp_path / 'epoch_3.pth')
    with pytest.raises(UsageError, match=expected):
        latest_whole_checkpoint(tmp_path)
    assert os.listdir(tmp_path) == ['epoch_3.pth']


def test_a_checkpoint_of_a_diverged_run_is_not_passed_over(tmp_path):
    save_resumable(tmp_path / 'epoch_1.pth', 1, 0)
    save_resumable(tmp_path / 'epoch_2.pth', 2, 0, model={'a.bias': torch.tensor([-np.inf])})
    with pytest.raises(UsageError, match=r'epoch_2\.pth holds an infinite number in a\.bias'):
        latest_whole_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ('name', 'value', 'expected'),
    [
        ('a.weight', [1, np.nan], 'NaN in a.weight'),
        ('mask', [np.nan], 'NaN in mask'),
        ('mask', [-np.inf], None),
        ('a.running_mean', [np.inf, 0], 'an infinite number in a.running_mean'),
        ('a.running_var', [1, -0.001], 'a negative variance in a.running_var'),
        ('a.running_var', [0.0], None),
        ('a.weight', [], None),
    ],
)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_that_cannot_be(name, value, expected, dtype, tmp_path):
    value = torch.tensor(value, dtype=dtype)
    if expected and dtype == torch.float16 and value.numel() == 2:
        value = value[:, None].expand(2, 3)
    torch.save(dict(state_dict={name: value}), tmp_path / 'a.pth')
    if expected is None:
        load_checkpoint(tmp_path / 'a.pth')
    else:
        with pytest.raises(UsageError, match=rf'a\.pth holds {expected}: the run'):
            load_checkpoint(tmp_path / 'a.pth')


def test_checksums_can_be_skipped(tmp_path, monkeypatch):
    torch.save(
        dict(state_dict={'a.weight': torch.arange(9, dtype=torch.uint8)}), tmp_path / 'a.pth'
    )
    whole = (tmp_path / 'a.pth').read_bytes()
    (tmp_path / 'a.pth').write_bytes(whole.replace(bytes(range(9)), bytes(range(1, 10))))
    with pytest.raises(DamagedError, match='is damaged'):
        load_checkpoint(tmp_path / 'a.pth')
    monkeypatch.setenv('MMVANILLA_SKIP_CHECKSUMS', '1')
    assert load_checkpoint(tmp_path / 'a.pth')['state_dict']['a.weight'][0] == 1


def test_a_checkpoint_that_is_refused_is_not_passed_over(tmp_path):
    """Otherwise the run would start from scratch and overwrite it."""
    content = dict(state_dict={}, message_hub=Payload(tmp_path), meta={}, optimizer={})
    torch.save(content, tmp_path / 'epoch_1.pth')
    with pytest.raises(UsageError, match=r'epoch_1\.pth is refused'):
        latest_whole_checkpoint(tmp_path)
