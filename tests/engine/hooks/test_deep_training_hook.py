import math

import pytest
import torch
from helpers.programs import run_python
from helpers.small_run import Classifier, Record, make_runner
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import VISBACKENDS
from mmengine.visualization import BaseVisBackend

from mmvanilla import UsageError, set_deep_training_lambda, switch_to_deploy
from mmvanilla.checkpoint import load_checkpoint
from mmvanilla.engine import DeepTrainingHook
from mmvanilla.engine.hooks.deep_training_hook import deep_training_lambda


@pytest.fixture
def warnings(monkeypatch):
    """Collects the warnings of mmengine's logger."""
    found = []
    monkeypatch.setattr(
        MMLogger, 'warning', lambda self, message, *args: found.append(str(message))
    )
    return found


@pytest.mark.parametrize(
    ('schedule', 'expected'),
    [
        ('linear', [0, 0.25, 0.5, 0.75, 1, 1]),
        ('cosine', [(1 - math.cos(math.pi * k / 4)) / 2 for k in range(5)] + [1]),
    ],
)
def test_schedule(schedule, expected):
    assert [deep_training_lambda(k, 4, schedule) for k in range(6)] == expected
    assert deep_training_lambda(4, 4, schedule) == 1  # exactly
    assert deep_training_lambda(0, 0, schedule) == 1


def test_papers_schedule():
    assert [deep_training_lambda(e, 100) for e in (0, 1, 50, 99, 100, 299)] == [
        0, 0.01, 0.5, 0.99, 1, 1,
    ]  # fmt: skip


@pytest.mark.parametrize('update_buffers', [None, False, True])
def test_lambda_in_training_evaluation_and_checkpoints(tmp_path, update_buffers):
    record, hooks = Record(), []
    if update_buffers is not None:
        hooks = [dict(type='EMAHook', momentum=0.1, update_buffers=update_buffers)]
    runner = make_runner(tmp_path, hooks=[record, *hooks])
    runner.train()
    expected = [0, 0.5, 1, 1]
    assert record.train == [{value} for value in expected for _ in range(2)]
    assert record.val == record.train
    for epoch, value in enumerate(expected, 1):
        checkpoint = load_checkpoint(tmp_path / f'epoch_{epoch}.pth')
        for key in ('state_dict', 'ema_state_dict'):
            weights = checkpoint.get(key, {})
            found = {float(v) for k, v in weights.items() if k.endswith('_extra_state')}
            assert found == ({value} if weights else set()), (epoch, key)
    history = runner.message_hub.get_scalar('train/lambda').data[0]
    assert list(history) == [value for value in expected for _ in range(2)]
    logged = [p.read_text() for p in tmp_path.glob('*/vis_data/scalars.json')]
    assert '"lambda": 0.5' in logged[0] and '"lr": 0.01' in logged[0]

    # The fused file holds the weights that were evaluated last, and nothing else.
    fused = load_checkpoint(tmp_path / 'epoch_4_deploy.pth')
    assert fused.keys() == {'meta', 'state_dict'}
    evaluated = Classifier()
    evaluated.load_state_dict(load_checkpoint(tmp_path / 'epoch_4.pth')['state_dict'])
    for name, value in switch_to_deploy(evaluated).state_dict().items():
        torch.testing.assert_close(fused['state_dict'][name], value)
    built = Classifier(deploy=True)
    built.load_state_dict(fused['state_dict'], strict=True)


@pytest.mark.parametrize('schedule', ['linear', 'cosine'])
def test_by_iteration(tmp_path, schedule):
    record = Record()
    hook = dict(by_epoch=False, decay_iters=5, schedule=schedule, decay_epochs=100)
    make_runner(tmp_path, hook=hook, hooks=[record]).train()
    assert record.train == [{deep_training_lambda(i, 5, schedule)} for i in range(8)]
    assert (tmp_path / 'epoch_4_deploy.pth').exists()


def test_iteration_based_loop(tmp_path):
    record = Record()
    runner = make_runner(
        tmp_path,
        hook=dict(by_epoch=False, decay_iters=2),
        hooks=[record],
        train_cfg=dict(by_epoch=False, max_iters=4, val_interval=4),
    )
    runner.train()
    assert record.train == [{0.0}, {0.5}, {1.0}, {1.0}]
    with pytest.raises(UsageError, match='by_epoch=False and decay_iters'):
        make_runner(
            tmp_path / 'other', train_cfg=dict(by_epoch=False, max_iters=4, val_interval=4)
        ).train()


@VISBACKENDS.register_module(force=True)
class Collects(BaseVisBackend):
    """What any backend gets, such as TensorBoard: plain numbers."""

    found = []

    def add_scalar(self, name, value, step=0, **kwargs):
        self.found.append((name, isinstance(value, float), value, step))

    def add_scalars(self, scalars, step=0, file_path=None, **kwargs):
        for name, value in scalars.items():
            self.add_scalar(name, value, step)

    def experiment(self):
        return self

    _init_env = add_config = add_graph = add_image = lambda self, *args, **kwargs: None


def test_lambda_in_logs(tmp_path):
    Collects.found.clear()
    backends = [dict(type='Collects', save_dir=str(tmp_path))]
    visualizer = dict(type='Visualizer', name='collects', vis_backends=backends)
    make_runner(tmp_path, visualizer=visualizer).train()
    found = [found[1:] for found in Collects.found if found[0] == 'lambda']
    values = [0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0]
    assert found == [(True, value, step) for step, value in enumerate(values, 1)]


def test_decay_epochs_0_only_fuses(tmp_path, warnings):
    record = Record()
    make_runner(tmp_path, epochs=1, hook=dict(decay_epochs=0), hooks=[record]).train()
    assert record.train == [{1.0}] * 2
    assert (tmp_path / 'epoch_1_deploy.pth').exists()
    assert not any('λ' in message for message in warnings)


@pytest.mark.parametrize('update_buffers', [False, True])
def test_resume_repeats_the_run(tmp_path, update_buffers):
    """A resumed run has the λ, losses and averaged weights of an uninterrupted one."""
    ema = dict(type='EMAHook', momentum=0.1, update_buffers=update_buffers)
    whole = make_runner(tmp_path / 'whole', hooks=[ema])
    whole.train()
    make_runner(tmp_path / 'half', epochs=2, hooks=[ema]).train()
    record = Record()
    resumed = make_runner(
        tmp_path / 'resumed',
        hooks=[record, ema],
        resume=True,
        load_from=str(tmp_path / 'half/epoch_2.pth'),
    )
    resumed.train()
    assert record.train == [{1.0}] * 4
    losses = [r.message_hub.get_scalar('train/loss').data[0][-4:] for r in (whole, resumed)]
    assert list(losses[0]) == list(losses[1])
    for name in ('epoch_4.pth', 'epoch_4_deploy.pth'):
        one, other = (
            load_checkpoint(tmp_path / folder / name)['state_dict']
            for folder in ('whole', 'resumed')
        )
        for key, value in one.items():
            assert torch.equal(value, other[key]), key


def test_resume_in_the_middle_of_the_schedule(tmp_path):
    make_runner(tmp_path / 'half', epochs=1, hook=dict(decay_epochs=3)).train()
    record = Record()
    make_runner(
        tmp_path / 'resumed',
        hook=dict(decay_epochs=3),
        hooks=[record],
        resume=True,
        load_from=str(tmp_path / 'half/epoch_1.pth'),
    ).train()
    assert record.train == [{1 / 3}] * 2 + [{2 / 3}] * 2 + [{1.0}] * 2


def test_schedule_that_never_ends(tmp_path, warnings):
    make_runner(tmp_path, epochs=4, hook=dict(decay_epochs=4)).train()
    start = next(m for m in warnings if 'reaches only 0.75' in m)
    assert 'decay_epochs=4' in start and 'at most 3' in start and 'cannot be fused' in start
    assert 'No fused checkpoint was written: λ is 0.75, not 1, in backbone.stem.conv.' in warnings
    assert not list(tmp_path.glob('*_deploy.pth'))


def test_annealing_loaded_weights_is_said(tmp_path, warnings):
    torch.save(dict(state_dict=Classifier().state_dict()), tmp_path / 'a.pth')
    make_runner(tmp_path / 'run', load_from=str(tmp_path / 'a.pth')).train()
    assert sum('training starts at λ = 0' in m for m in warnings) == 1
    warnings.clear()
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'))
    make_runner(tmp_path / 'run2', model=Classifier(init_cfg=init_cfg)).train()
    assert sum('training starts at λ = 0' in m for m in warnings) == 1
    warnings.clear()
    model = Classifier()  # from random weights, with a teacher that is not
    model.teacher = Classifier(init_cfg=init_cfg).requires_grad_(False)
    make_runner(tmp_path / 'run4', model=model).train()
    assert not any('training starts at' in m for m in warnings)
    make_runner(tmp_path / 'run3').train()
    assert not any('training starts at' in m for m in warnings)


def test_loaded_weights_of_another_lambda_are_named(tmp_path, warnings):
    """A warning names λ of weights loaded by load_from or init_cfg, but not when resuming."""
    model = Classifier()
    set_deep_training_lambda(model, 0.3)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'a.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'))
    for folder, kwargs in (
        ('one', dict(load_from=str(tmp_path / 'a.pth'))),
        ('two', dict(model=Classifier(init_cfg=init_cfg))),
    ):
        warnings.clear()
        make_runner(tmp_path / folder, hook=dict(decay_epochs=0), epochs=2, **kwargs).train()
        (said,) = [m for m in warnings if 'Weights were loaded' in m]
        assert 'loaded at λ = 0.3, but training starts at λ = 1' in said
    warnings.clear()
    make_runner(
        tmp_path / 'resumed',
        model=Classifier(init_cfg=init_cfg),
        hook=dict(decay_epochs=0),
        resume=True,
        load_from=str(tmp_path / 'one/epoch_1.pth'),
    ).train()
    assert not any('Weights were loaded' in m for m in warnings)


def test_a_network_built_fused_is_not_trained(tmp_path):
    with pytest.raises(UsageError, match='fused weights, which are only for inference'):
        make_runner(tmp_path, model=Classifier(deploy=True), hook=dict(decay_epochs=0)).train()


def test_model_without_deep_convs(tmp_path):
    model = Classifier()
    model.backbone.requires_grad_(False)
    with pytest.raises(UsageError, match='no deep convolution that this run trains'):
        make_runner(tmp_path, model=model).train()
    model.backbone = torch.nn.Conv2d(3, 64, 1)
    with pytest.raises(UsageError, match='no deep convolution that this run trains'):
        make_runner(tmp_path / 'other', model=model).train()


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(schedule='step'), "'step' is unknown: choose one of linear, cosine"),
        (dict(decay_epochs=-1), 'decay_epochs must be 0 or more, got -1'),
        (dict(by_epoch=False), 'use decay_iters with by_epoch=False'),
        (dict(decay_iters=10), 'use decay_iters with by_epoch=False'),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(UsageError, match=message):
        DeepTrainingHook(**kwargs)


def test_config_of_the_fused_file_builds_it(tmp_path):
    from mmvanilla.config import deploy_config

    cfg = Config(dict(model=dict(type='X', backbone=dict(type='mmvanilla.VanillaNet', arch='5'))))
    assert deploy_config(cfg).model.backbone.deploy is True
    assert 'deploy' not in cfg.model.backbone and 'deploy' not in deploy_config(cfg).model


def test_lambda_in_a_new_process(tmp_path):
    """Another process loads λ = 0.4, saved by a run or torch.save, with the same outputs."""
    runner = make_runner(tmp_path / 'run', epochs=3, hook=dict(decay_epochs=5))
    runner.train()
    model = runner.model.eval()
    torch.save(model.state_dict(), tmp_path / 'plain.pth')
    x = torch.randn(2, 3, 32, 32)
    torch.save(dict(x=x, expected=model(x, None)), tmp_path / 'io.pth')
    code = f"""
import sys; sys.path.insert(0, 'tests')
import torch
from helpers.small_run import Classifier
from mmvanilla.checkpoint import get_state_dict, load_checkpoint
from mmvanilla.models.folding.network import deep_convs
io = torch.load(r'{tmp_path}/io.pth')
for path in ('plain.pth', 'run/epoch_3.pth'):
    model = Classifier().eval()
    model.load_state_dict(get_state_dict(load_checkpoint(r'{tmp_path}/' + path)))
    equal = torch.equal(model(io['x'], None), io['expected'])
    print({{conv.lambda_ for conv in deep_convs(model)}}, equal)
"""
    assert run_python('-c', code).splitlines()[-2:] == ['{0.4} True'] * 2
