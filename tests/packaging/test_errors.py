"""One sentence for each error, and tracebacks for errors in a user's own code."""

import errno
import os

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import HOOKS, MODELS
from torch.utils.data import DataLoader

from mmvanilla import UsageError
from mmvanilla.checkpoint import check_writable, reserve_folder
from mmvanilla.cli.checks import check_settings
from mmvanilla.cli.explanations import explain
from mmvanilla.cli.options import one_sentence_errors


class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise UsageError('image 7 cannot be loaded: mend it.')


def no_room():
    raise OSError(errno.ENOSPC, 'No space left on device', 'a.log')


def no_memory():
    torch.empty(1 << 60)


@pytest.mark.parametrize(
    ('fail', 'sentence'),
    [
        (lambda: MODELS.build(dict(type='mmvanilla.VanilaNet')), "did you mean 'mmvanilla.Vanil"),
        (lambda: MODELS.build(dict(type='mmvanilla.VanillaNet', act=3)), 'did you mean act_num?'),
        (
            lambda: MODELS.build(dict(act_num=3)),
            'a part of the config has no type: dict(act_num=3)',
        ),
        (lambda: HOOKS.build(dict(type='LoggerHook', intervals=1)), 'did you mean interval'),
        (lambda: HOOKS.build('EMAHook'), "must be a dict with a type, got 'EMAHook'"),
        (lambda: MODELS.build(dict(type='ConvModule')), 'ConvModule needs'),
        (lambda: next(iter(DataLoader(Broken(), num_workers=1))), 'image 7 cannot be loaded: mend'),
        (lambda: torch.nn.Conv2d(3, 1, 1)(torch.ones(1, 4, 2, 2)), 'takes 3 channels, but gets 4'),
        (no_room, 'a.log cannot be written (No space left on device): make room.'),
        (no_memory, 'there is not enough memory'),
        (lambda: open('/proc/1/mem') if os.getuid() else _no_permission(), 'no permission for'),
    ],
)
def test_explanations(fail, sentence):
    import mmcv.cnn  # noqa: F401  registers ConvModule's parts

    with pytest.raises(BaseException) as error:
        fail()
    assert sentence in explain(error.value)


def test_errors_of_packages_are_named():
    with pytest.raises(KeyError) as error:
        MMLogger(name='a', log_level='LOUD')
    assert explain(error.value) is None  # called from here, so it may be ours
    error.value.__traceback__ = error.value.__traceback__.tb_next
    sentence = explain(error.value)
    assert sentence.startswith("mmengine.logging.logger failed with KeyError: 'LOUD': the config")
    assert 'MMVANILLA_TRACEBACK=1' in sentence


def _no_permission():
    raise PermissionError(errno.EACCES, 'Permission denied', 'a.pth')


def test_errors_in_own_code_keep_their_tracebacks():
    with pytest.raises(ZeroDivisionError), one_sentence_errors():
        _ = 1 / 0


def test_interruptions(capsys):
    with pytest.raises(SystemExit) as error, one_sentence_errors('interrupted; go on.'):
        raise KeyboardInterrupt
    assert error.value.code == 130 and capsys.readouterr().err == 'interrupted; go on.\n'


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(custom_hook=[]), 'nothing reads: did you mean custom_hooks'),
        (dict(custom_hooks=dict()), 'custom_hooks of the config must be'),
        (dict(train_cfg=dict(val_interval=0)), 'train_cfg.val_interval must be above 0'),
        (dict(optim_wrapper=dict(optimizer=dict(type='AdmW'))), "did you mean 'AdamW'"),
        (dict(optim_wrapper=dict(type='OptimWrapper')), 'optim_wrapper has no optimizer'),
        (dict(default_scope='mmdett'), "did you mean 'mmdet'"),
    ],
)
def test_settings(settings, message):
    with pytest.raises(UsageError, match=message):
        check_settings(Config(settings))
    check_settings(Config(dict(train_pipeline=[], classes=(), val_dataloader_2=dict(), hook=3)))


def test_places_that_cannot_be_written(tmp_path):
    check_writable(tmp_path / 'new/folder/a.pkl')
    (tmp_path / 'file').write_text('')
    check_writable(tmp_path / 'file')
    with pytest.raises(UsageError, match='because .*file is a file'):
        check_writable(tmp_path / 'file/folder/a.pkl')
    assert os.listdir(tmp_path) == ['file']


def test_a_folder_is_reserved_by_one_process(tmp_path):
    folder = tmp_path / 'run'

    def in_a_fork():
        child = os.fork()
        if child == 0:
            try:
                reserve_folder(folder)
                os._exit(0)
            except UsageError as error:
                os._exit(7 if 'another run is using' in str(error) else 8)
        return os.WEXITSTATUS(os.waitpid(child, 0)[1])

    assert in_a_fork() == 0  # whatever it reserved ended with it
    reserve_folder(folder)
    reserve_folder(folder)
    assert in_a_fork() == 7
    assert os.listdir(folder) == []
