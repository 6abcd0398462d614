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
    with pytest.raises(UsageError, match='truncated'):
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


def test_latest_whole_checkpoint(tmp_path):
    assert latest_whole_checkpoint(tmp_path) is None
    for age, (name, content) in enumerate(
        {
            'epoch_2_deploy.pth': dict(state_dict={}),  # newest, not for resuming
            'epoch_3.pth': None,  # cut off
            'best.pth': dict(state_dict={}, message_hub={}, meta={}),  # without optimizer
            'epoch_2.pth': dict(state_dict={}, message_hub={}, meta={}, optimizer={}),
            'epoch_1.pth': dict(state_dict={}, message_hub={}, meta={}, optimizer={}),
        }.items()
    ):
        if content is None:
            (tmp_path / name).write_bytes(b'PK cut')
        else:
            torch.save(content, tmp_path / name)
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    (tmp_path / 'last_checkpoint').write_text('')  # killed while writing it
    assert latest_whole_checkpoint(tmp_path).name == 'epoch_2.pth'


def test_a_checkpoint_that_is_refused_is_not_passed_over(tmp_path):
    """Otherwise the run would start from scratch and overwrite it."""
    content = dict(state_dict={}, message_hub=Payload(tmp_path), meta={}, optimizer={})
    torch.save(content, tmp_path / 'epoch_1.pth')
    with pytest.raises(UsageError, match=r'epoch_1\.pth is refused'):
        latest_whole_checkpoint(tmp_path)
