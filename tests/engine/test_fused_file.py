"""The fused file at the end of a run: what is in it, its name, and that nothing harms the run."""

import errno
import logging
from types import SimpleNamespace

import pytest
import torch
from helpers.networks import randomize
from helpers.small_run import Classifier, make_runner
from mmengine.fileio import BaseStorageBackend
from mmengine.hooks import Hook
from torch import nn

from mmvanilla import switch_to_deploy
from mmvanilla.checkpoint import load_checkpoint
from mmvanilla.engine import AtomicCheckpointHook, fused_file
from mmvanilla.models.folding.network import check_fused, copy_network, unwrap


class Last(Hook):
    """Runs after the other hooks, and collects what the log says."""

    priority = 'LOWEST'

    def __init__(self):
        self.ran, self.said = False, []

    def before_train(self, runner):
        handler = logging.Handler()
        handler.emit = lambda record: self.said.append(record.getMessage())
        runner.logger.addHandler(handler)

    def after_train(self, runner):
        self.ran = True


class First(Hook):
    """Does something before the fused file is written."""

    priority = 'VERY_HIGH'

    def __init__(self, act):
        self.act = act

    def after_train(self, runner):
        self.act(unwrap(runner.model))


def spoil_weights(model):
    model.backbone.stem.conv.conv2.weight.data[0] = float('nan')


def spoil_statistics(model):
    model.backbone.blocks[1].conv.norm.running_var.fill_(float('inf'))


@pytest.mark.parametrize(
    ('spoil', 'bad'),
    [
        (spoil_weights, 'backbone.stem.conv.conv2.weight'),
        (spoil_statistics, 'backbone.blocks.1.conv.norm.running_var'),
    ],
)
def test_a_diverged_run(spoil, bad, tmp_path):
    last = Last()
    make_runner(tmp_path, epochs=3, hooks=[First(spoil), last]).train()
    assert last.ran and not list(tmp_path.glob('*_deploy.pth*'))
    (said,) = [m for m in last.said if 'No fused checkpoint' in m]
    assert f'{bad} has values that are not finite, so the run diverged' in said
    assert f'python tools/deploy.py CONFIG {tmp_path}/epoch_3.pth {tmp_path}/deploy' in said


def fuse_wrongly(model):
    fused = switch_to_deploy(model)
    fused.backbone.stem.conv.conv.bias.data += 0.5
    return fused


def raises(error):
    def function(*args, **kwargs):
        raise error

    return function


class OwnState(nn.Module):
    """Keeps what is not a tensor, and a mask that is not finite, as users' heads do."""

    def __init__(self):
        super().__init__()
        self.register_buffer('mask', torch.full((4, 4), -torch.inf).triu(1))

    def get_extra_state(self):
        return dict(version=1)

    def set_extra_state(self, state):
        pass


def test_other_values_do_not_matter(tmp_path):
    model = Classifier()
    model.own = OwnState()
    last = Last()
    make_runner(tmp_path, epochs=3, model=model, hooks=[last]).train()
    assert last.ran and (tmp_path / 'epoch_3_deploy.pth').exists()


@pytest.mark.parametrize(
    ('name', 'broken', 'reason'),
    [
        ('switch_to_deploy', fuse_wrongly, 'backbone.stem.conv: the outputs of the fused layer'),
        ('save_fused', raises(OSError(errno.ENOSPC, 'No space left on device')), 'No space left'),
        ('copy_network', raises(MemoryError()), 'MemoryError'),
        ('deploy_config', raises(RuntimeError('one\ntwo')), '(one)'),
    ],
)
def test_a_failure_is_one_sentence(name, broken, reason, tmp_path, monkeypatch):
    last = Last()
    monkeypatch.setattr(fused_file, name, broken)
    make_runner(tmp_path, epochs=3, hooks=[last]).train()
    assert last.ran and not list(tmp_path.glob('*_deploy.pth*'))
    (said,) = [m for m in last.said if 'No fused checkpoint' in m]
    assert reason in said and '\n' not in said
    assert f'To write one later: python tools/deploy.py CONFIG {tmp_path}/epoch_3.pth' in said


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision(dtype, tmp_path):
    """Its fused weights are rounded as its own are."""
    make_runner(tmp_path, epochs=3, hooks=[First(lambda m: randomize(m).to(dtype))]).train()
    fused = load_checkpoint(tmp_path / 'epoch_3_deploy.pth')['state_dict']
    assert {value.dtype for value in fused.values()} == {dtype}


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('seed', range(3))
def test_wrong_fusing_is_seen_in_half_precision(dtype, seed):
    model = randomize(Classifier(), seed).to(dtype)
    fused = switch_to_deploy(model)
    check_fused(model, fused)
    fused.backbone.blocks[2].conv.conv.bias.data += 0.5
    with pytest.raises(RuntimeError, match='backbone.blocks.2.conv'):
        check_fused(model, fused)


def test_copies_on_another_device():
    """Parameters and buffers are copied there at once, so that a full GPU suffices."""
    model = randomize(Classifier())
    model.tied = model.backbone.stem
    copied = copy_network(model, device='meta')
    assert {t.device.type for t in [*copied.parameters(), *copied.buffers()]} == {'meta'}
    assert copied.tied is copied.backbone.stem
    copied = copy_network(model, device='cpu')
    torch.testing.assert_close(copied.state_dict(), model.state_dict(), rtol=0, atol=0)
    copied.backbone.stem.conv.norm.running_mean += 1
    assert copied.head.weight is not model.head.weight
    assert not torch.equal(
        copied.backbone.stem.conv.norm.running_mean, model.tied.conv.norm.running_mean
    )


class Stops(Hook):
    def after_train_epoch(self, runner):
        runner.train_loop.stop_training = runner.epoch == 3


BY_ITERATION = dict(
    hook=dict(by_epoch=False, decay_iters=2, decay_epochs=100),
    train_cfg=dict(type='IterBasedTrainLoop', max_iters=5, val_interval=5),
)


@pytest.mark.parametrize(
    ('checkpoint', 'arguments', 'expected'),
    [
        (dict(interval=3), dict(epochs=5, hooks=[Stops()]), 'epoch_4_deploy.pth'),
        (dict(interval=3, save_last=False), dict(epochs=5), 'epoch_5_deploy.pth'),
        (dict(interval=3, by_epoch=False), dict(epochs=4), 'iter_8_deploy.pth'),
        (dict(interval=3, by_epoch=False), BY_ITERATION, 'iter_5_deploy.pth'),
        (dict(filename_tmpl='own-{}.ckpt'), dict(epochs=4), 'own-4_deploy.pth'),
        (dict(filename_tmpl='v1.2-{}'), dict(epochs=4), 'v1.2-4_deploy.pth'),
        (None, dict(epochs=3), 'epoch_3_deploy.pth'),
        (None, BY_ITERATION, 'iter_5_deploy.pth'),
    ],
)
def test_name(checkpoint, arguments, expected, tmp_path):
    """It tells the epoch or iteration that the network has, whatever was saved last."""
    runner = make_runner(tmp_path, checkpoint=checkpoint, **arguments)
    runner.train()
    (found,) = tmp_path.glob('*_deploy.pth')
    assert found.name == expected
    meta = load_checkpoint(found)['meta']
    assert (meta['epoch'], meta['iter']) == (runner.epoch, runner.iter)


def test_folder(tmp_path):
    """It is beside the run's checkpoints, not beside those of the run that was resumed."""
    make_runner(tmp_path / 'old', epochs=3).train()
    resume = dict(resume=True, load_from=str(tmp_path / 'old/epoch_3.pth'))
    saves_nothing = dict(interval=100, save_last=False)
    make_runner(tmp_path / 'new', epochs=6, checkpoint=saves_nothing, **resume).train()
    assert [p.name for p in (tmp_path / 'old').glob('*_deploy.pth')] == ['epoch_3_deploy.pth']
    assert [p.name for p in (tmp_path / 'new').glob('*_deploy.pth')] == ['epoch_6_deploy.pth']
    elsewhere = dict(out_dir=str(tmp_path / 'elsewhere'))
    make_runner(tmp_path / 'third', epochs=3, checkpoint=elsewhere).train()
    assert (tmp_path / 'elsewhere/third/epoch_3_deploy.pth').exists()


def test_remote_checkpoints(tmp_path):
    hook = AtomicCheckpointHook(by_epoch=False)
    hook.file_backend, hook.out_dir = BaseStorageBackend, 's3://bucket/run'
    runner = SimpleNamespace(hooks=[hook], work_dir=str(tmp_path), epoch=2, iter=7, train_loop=None)
    assert fused_file._place(runner) == tmp_path / 'iter_7_deploy.pth'
