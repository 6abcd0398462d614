"""The hook beside optimizers, wrappers, strategies, averages and accumulation.

Each run is stopped and resumed before, at and after the merge; its final weights must be those of
the run without a stop.
"""

import os
from types import SimpleNamespace

import mmpretrain.engine  # noqa: F401  registers Lamb and LARS
import pytest
import torch
from helpers.small_run import Classifier, Record, make_runner
from helpers.versions import torch_has
from mmengine.optim import OptimWrapper
from mmengine.runner import FlexibleRunner
from torch import distributed

from mmvanilla import UsageError
from mmvanilla.checkpoint import load_checkpoint
from mmvanilla.engine.merging import check_run

# What cannot be tried on a CPU, or is for other gradients, is in REFUSED.
OPTIMIZERS = {
    'Adadelta': [{}, dict(foreach=True)],
    'Adagrad': [{}, dict(foreach=True), dict(fused=True), dict(initial_accumulator_value=0.1)],
    'Adam': [{}, dict(foreach=True), dict(fused=True), dict(amsgrad=True)],
    'AdamW': [{}, dict(foreach=True), dict(fused=True), dict(amsgrad=True)],
    'Adamax': [{}, dict(foreach=True)],
    'ASGD': [{}, dict(foreach=True), dict(t0=2)],
    'NAdam': [{}, dict(foreach=True)],
    'RAdam': [{}, dict(foreach=True)],
    'RMSprop': [{}, dict(foreach=True), dict(momentum=0.9, centered=True)],
    'Rprop': [{}, dict(foreach=True)],
    'SGD': [
        *({}, dict(momentum=0.9), dict(momentum=0.9, nesterov=True)),
        *(dict(momentum=0.9, foreach=True), dict(momentum=0.9, fused=True)),
        dict(momentum=0.9, dampening=0.5),
    ],
    'mmpretrain.Lamb': [{}],
    'mmpretrain.LARS': [{}, dict(momentum=0.9, nesterov=True)],
}
CASES = [(name, each) for name, variants in OPTIMIZERS.items() for each in variants]
FUSED = torch_has('2.4')  # on CPUs
HOOKS = dict(
    epochs=dict(merge=True),
    iterations=dict(merge=True, by_epoch=False, decay_iters=3, decay_epochs=100),
)


def optimizer(name, settings):
    return dict(optimizer=dict(type=name, lr=0.001, **settings))


def assert_resumes(run, folder, epochs=(1, 2, 3), compared=('epoch_4.pth', 'epoch_4_deploy.pth')):
    """Runs whole, and from each epoch on; the merge is at the start of the third."""
    run(folder / 'whole')
    for epoch in epochs:
        start = dict(resume=True, load_from=str(folder / f'whole/epoch_{epoch}.pth'))
        run(folder / f'{epoch}', **start)
        for name in compared:
            one, other = (load_checkpoint(folder / f / name) for f in ('whole', f'{epoch}'))
            assert any('conv.conv.weight' in key for key in one['state_dict'])
            for weights in {'state_dict', 'ema_state_dict'} & one.keys():
                torch.testing.assert_close(other[weights], one[weights], rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize('schedule', HOOKS)
@pytest.mark.parametrize(('name', 'settings'), CASES, ids=str)
def test_optimizers(name, settings, schedule, tmp_path):
    if settings.get('fused') and not FUSED:
        pytest.skip('no fused optimizers on CPUs before torch 2.4')

    def run(folder, **kwargs):
        runner = make_runner(folder, hook=HOOKS[schedule], **kwargs)
        runner.optim_wrapper = optimizer(name, settings)
        runner.train()

    assert_resumes(run, tmp_path)


REFUSED = [
    ('LBFGS', {}, 'does not go on afterwards'),
    ('SparseAdam', {}, 'dense gradients'),
    ('Adam', dict(capturable=True), 'capturable=True'),
]


@pytest.mark.parametrize(('name', 'settings', 'message'), REFUSED, ids=str)
def test_refused_optimizers(name, settings, message, tmp_path):
    """They end in a sentence before the first iteration."""
    record = Record()
    runner = make_runner(tmp_path, hook=dict(merge=True), hooks=[record])
    runner.optim_wrapper = optimizer(name, settings)
    with pytest.raises(UsageError, match=message):
        runner.train()
    assert not record.train and not list(tmp_path.glob('*.pth'))


class Stale(torch.optim.SGD):
    """Keeps the parameters that it got first, as LBFGS does."""

    def step(self, closure=None):
        for group in self.param_groups:
            self.first = getattr(self, 'first', group['params'])
            for param in self.first:
                param.data.add_(param.grad, alpha=-group['lr'])


def test_an_optimizer_that_keeps_old_parameters():
    model = Classifier()
    runner = SimpleNamespace(
        model=model, optim_wrapper=OptimWrapper(Stale(model.parameters(), lr=0.1))
    )
    before = torch.random.get_rng_state()
    with pytest.raises(UsageError, match='Stale, which does not change new parameters'):
        check_run(runner)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize('counts', [2, 3])
@pytest.mark.parametrize('schedule', ['epochs', 'iterations'])
def test_accumulated_gradients(counts, schedule, tmp_path):
    """The merge waits until they have been used."""
    found = []

    def merge(runner, prefixes):
        found.append((runner.iter, [p.grad is not None for p in runner.model.parameters()]))
        return merge_in_run(runner, prefixes)

    from mmvanilla.engine.hooks import deep_training_hook

    merge_in_run = deep_training_hook.merge_in_run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deep_training_hook, 'merge_in_run', merge)
        runner = make_runner(tmp_path, hook=HOOKS[schedule])
        runner.optim_wrapper = dict(
            optimizer=dict(type='SGD', lr=0.01, momentum=0.9), accumulative_counts=counts
        )
        runner.train()
    ((iteration, has_gradients),) = found
    at_one = 4 if schedule == 'epochs' else 3
    assert iteration == -(-at_one // counts) * counts
    if torch_has('2.0'):  # before, used gradients become zero
        assert not any(has_gradients)


EMA = {
    'mmengine': dict(type='EMAHook', momentum=0.1),
    'mmengine with buffers': dict(type='EMAHook', momentum=0.1, update_buffers=True),
    'mmpretrain': dict(type='mmpretrain.EMAHook', momentum=0.1),
    'mmpretrain with buffers': dict(type='mmpretrain.EMAHook', momentum=0.1, update_buffers=True),
}


@pytest.mark.slow
@pytest.mark.parametrize('schedule', HOOKS)
@pytest.mark.parametrize('ema', EMA)
@pytest.mark.parametrize('counts', [1, 2])
def test_averages_and_accumulation(ema, schedule, counts, tmp_path):
    hook = HOOKS[schedule]
    if counts == 2 and schedule == 'iterations':
        hook = dict(hook, decay_iters=4)

    def run(folder, **kwargs):
        runner = make_runner(folder, hook=hook, hooks=[dict(EMA[ema])], **kwargs)
        runner.optim_wrapper = dict(
            optimizer=dict(type='AdamW', lr=0.001), accumulative_counts=counts
        )
        runner.train()

    assert_resumes(run, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not torch_has('2.1'), reason='compiling is new in torch 2.1')
@pytest.mark.parametrize('schedule', HOOKS)
@pytest.mark.parametrize('flexible', [False, True])
def test_compiled(flexible, schedule, tmp_path):
    def run(folder, **kwargs):
        torch._dynamo.reset()
        options = dict(compile=dict(backend='eager')) if flexible else {}
        cfg = {} if flexible else dict(cfg=dict(compile=dict(backend='eager')))
        kind = FlexibleRunner if flexible else None
        make_runner(folder, hook=HOOKS[schedule], kind=kind, **options, **cfg, **kwargs).train()

    assert_resumes(run, tmp_path)


WRAPPER = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
STRATEGIES = {
    'SingleDeviceStrategy': dict(type='SingleDeviceStrategy'),
    'DDPStrategy': dict(type='DDPStrategy', model_wrapper=WRAPPER),
}


@pytest.mark.slow
@pytest.mark.parametrize('schedule', HOOKS)
def test_single_device_strategy(schedule, tmp_path):
    def run(folder, **kwargs):
        strategy = dict(STRATEGIES['SingleDeviceStrategy'])
        hook = HOOKS[schedule]
        make_runner(folder, hook=hook, kind=FlexibleRunner, strategy=strategy, **kwargs).train()

    assert_resumes(run, tmp_path)


def two_ranks(rank, folder, schedule, strategy, ema):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2')
    store = f'file://{folder}/store'
    distributed.init_process_group('gloo', store, rank=rank, world_size=2)

    def run(at, **kwargs):
        hooks = [] if ema is None else [dict(EMA[ema])]
        if strategy is None:
            options = dict(cfg=dict(model_wrapper_cfg=dict(WRAPPER)), launcher='pytorch')
        else:
            options = dict(kind=FlexibleRunner, strategy=dict(STRATEGIES[strategy]))
        runner = make_runner(at, hook=HOOKS[schedule], hooks=hooks, **options, **kwargs)
        runner.train()
        distributed.barrier()

    assert_resumes(run, folder)
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize('schedule', HOOKS)
@pytest.mark.parametrize(
    ('strategy', 'ema'),
    [(None, None), (None, 'mmengine'), (None, 'mmengine with buffers'), ('DDPStrategy', None)],
)
def test_two_ranks(strategy, ema, schedule, tmp_path):
    torch.multiprocessing.spawn(two_ranks, (tmp_path, schedule, strategy, ema), nprocs=2)
