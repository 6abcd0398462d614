"""Networks beside the one that trains: frozen teachers, averages of it, second backbones."""

import copy
from types import SimpleNamespace

import pytest
import torch
from helpers.networks import FORMS, randomize
from helpers.small_run import Classifier, Record, make_runner
from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseModel, ExponentialMovingAverage
from mmengine.optim import OptimWrapper

from mmvanilla import (
    UsageError,
    VanillaNet,
    set_deep_training_lambda,
    switch_to_deploy,
)
from mmvanilla.checkpoint import load_checkpoint
from mmvanilla.engine.annealed_layers import trained_layers
from mmvanilla.models.folding.foldable import named_foldables
from mmvanilla.models.folding.network import deep_convs, unwrap

X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
EMA = dict(type='EMAHook', momentum=0.1, update_buffers=True)


class Distiller(BaseModel):
    """A student that learns from labels and from a teacher, whichever kind that is."""

    def __init__(self, teacher=None):
        super().__init__()
        self.student = Classifier()
        self.teacher = Classifier() if teacher is None else teacher

    def train(self, mode=True):
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, inputs, labels, mode='tensor'):
        if mode != 'loss':
            return self.student(inputs, labels)
        with torch.no_grad():
            target = self.teacher(inputs, labels)
        logits = self.student(inputs, labels)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        return dict(loss=loss, distillation=(logits - target).square().mean())


def teacher_of(form, folder, built=None):
    """A teacher that takes its weights from a file in some form, and the file's network."""
    torch.manual_seed(1)
    trained = FORMS[form](randomize(Classifier()))
    torch.save(trained.state_dict(), folder / f'{form}.pth')
    teacher = Classifier(**({} if built is None else {built: True}))
    teacher.init_cfg = dict(type='Pretrained', checkpoint=str(folder / f'{form}.pth'))
    return teacher, trained


def frozen(*args):
    teacher, _ = teacher_of(*args)
    return Distiller(teacher.requires_grad_(False).eval())


@torch.no_grad()
def outputs(network):
    mode = network.training
    found = network.eval()(X, None)
    network.train(mode)
    return found


def lambdas(network):
    return {conv.lambda_ for conv in deep_convs(network)}


@pytest.mark.parametrize('merge', [False, True])
@pytest.mark.parametrize('ema', [False, True])
@pytest.mark.parametrize(
    ('form', 'built'),
    [
        ('deep', None),
        ('merged', None),
        ('merged', 'merged'),
        ('deploy', None),
        ('deploy', 'deploy'),
    ],
)
def test_a_frozen_teacher_stays_as_it_is(form, built, ema, merge, tmp_path):
    """λ, merging and fusing are for the student; resuming repeats the whole run."""
    expected, record = outputs(teacher_of(form, tmp_path)[1]), StudentAndTeacher()
    ema = [EMA] if ema else []
    arguments = dict(hook=dict(merge=merge), epochs=4)

    def run(folder, *hooks, **kwargs):
        model = frozen(form, tmp_path, built)
        runner = make_runner(folder, model=model, hooks=[*hooks, *ema], **arguments, **kwargs)
        runner.train()
        return unwrap(runner.model)

    model = run(tmp_path / 'whole', record)
    assert record.student == [{0.0}, {0.5}, {1.0}, {1.0}]
    assert record.teacher == [{1.0}] * 4
    assert torch.equal(outputs(model.teacher), expected)
    assert {conv.form for conv in deep_convs(model.teacher)} == {form}
    assert {conv.form for conv in deep_convs(model.student)} == {'merged' if merge else 'deep'}
    fused = Distiller()
    fused.load_state_dict(load_checkpoint(tmp_path / 'whole/epoch_4_deploy.pth')['state_dict'])
    torch.testing.assert_close(outputs(fused.teacher), expected, rtol=1e-3, atol=1e-4)
    for epoch in (1, 3):
        start = dict(resume=True, load_from=str(tmp_path / f'whole/epoch_{epoch}.pth'))
        run(tmp_path / str(epoch), **start)
        assert_same(tmp_path / str(epoch), tmp_path / 'whole')


def assert_same(folder, other, names=('epoch_4.pth', 'epoch_4_deploy.pth')):
    for name in names:
        one, two = (load_checkpoint(each / name) for each in (folder, other))
        for key in {'state_dict', 'ema_state_dict'} & two.keys():
            torch.testing.assert_close(one[key], two[key], rtol=0, atol=0)


class StudentAndTeacher(Hook):
    """Records their λ at the last iteration of each epoch, as the forward pass sees it."""

    priority = 'LOWEST'

    def __init__(self):
        self.student, self.teacher = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx == 1:
            model = unwrap(runner.model)
            self.student.append(lambdas(model.student))
            self.teacher.append(lambdas(model.teacher))


def test_a_teacher_in_eval_mode(tmp_path):
    """It need not be frozen, even if it is fused and an optimizer holds its parameters."""
    for form in FORMS:
        teacher, trained = teacher_of(form, tmp_path)
        model, record = Distiller(teacher), StudentAndTeacher()
        make_runner(tmp_path / form, model=model, hooks=[record]).train()
        assert record.student == [{0.0}, {0.5}, {1.0}, {1.0}]
        assert record.teacher == [{1.0}] * 4
        assert torch.equal(outputs(model.teacher), outputs(trained))


class Acts(Hook):
    """Does something to the model in ``before_train`` of a hook with the usual priority."""

    def __init__(self, act):
        self.act = act

    def before_train(self, runner):
        self.act(unwrap(runner.model))


@pytest.mark.parametrize('merge', [False, True])
@pytest.mark.parametrize('value', [0.0, 0.5, 1.0])
def test_a_teacher_that_a_hook_loads(value, merge, tmp_path):
    """It is not an average, and at any λ, even the student's, it keeps its own when resumed."""
    weights = randomize(Classifier(), seed=5)
    set_deep_training_lambda(weights, value)
    weights = weights.state_dict()

    def run(folder, **kwargs):
        torch.manual_seed(1)
        model = Distiller()
        model.teacher.requires_grad_(False)
        record = StudentAndTeacher()
        load = Acts(lambda model: model.teacher.load_state_dict(weights))
        hook = dict(merge=merge, by_epoch=False, decay_iters=4, decay_epochs=100)
        make_runner(folder, model=model, hooks=[load, record], hook=hook, **kwargs).train()
        return record, model.teacher

    record, teacher = run(tmp_path / 'whole')
    assert record.teacher == [{value}] * 4
    assert {conv.form for conv in deep_convs(teacher)} == {'deep'}
    for epoch in (1, 2, 3):
        start = dict(resume=True, load_from=str(tmp_path / f'whole/epoch_{epoch}.pth'))
        record, teacher = run(tmp_path / f'{epoch}', **start)
        assert record.teacher == [{value}] * (4 - epoch)
        assert_same(tmp_path / f'{epoch}', tmp_path / 'whole', ['epoch_4.pth'])


class Silent(torch.nn.Module):
    def forward(self, inputs, labels):
        return torch.zeros(len(inputs), 2)


@pytest.mark.parametrize(
    'act',
    [
        lambda model: switch_to_deploy(model.teacher, inplace=True),
        lambda model: setattr(model, 'teacher', Silent()),
    ],
)
def test_a_teacher_that_changes(act, tmp_path):
    """A hook may fuse a frozen teacher to save time, or replace it."""

    class Later(Acts):
        def before_train(self, runner):
            pass

        def before_train_epoch(self, runner):
            if runner.epoch == 1:
                self.act(unwrap(runner.model))

    for hook in (Acts(act), Later(act)):
        model = Distiller()
        model.teacher.requires_grad_(False)
        make_runner(tmp_path, model=model, hooks=[hook]).train()
        assert lambdas(model.student) == {1.0}


def test_averages_of_two_networks(tmp_path):
    """The average of a frozen network stays with it, beside that of a trained one."""

    class TwoAverages(TwoStreams):
        def __init__(self):
            super().__init__()
            self.depth = VanillaNet('5', in_channels=1, widen_factor=1 / 64, act_num=1)
            self.rgb.requires_grad_(False)
            self.ema_rgb = ExponentialMovingAverage(self.rgb.backbone)
            self.ema_depth = ExponentialMovingAverage(self.depth)

    model = TwoAverages()
    make_runner(tmp_path, model=model, hook=dict(merge=True)).train()
    for name, form in (('rgb', 'deep'), ('ema_rgb', 'deep'), ('depth', 'merged')):
        assert {conv.form for conv in deep_convs(getattr(model, name))} == {form}
    model.ema_depth.update_parameters(model.depth)
    model.ema_rgb.update_parameters(model.rgb.backbone)


def test_frozen_by_omission(tmp_path):
    """What no optimizer holds is not trained, whatever requires gradients."""
    runner = make_runner(tmp_path)
    runner.optim_wrapper = OptimWrapper(torch.optim.SGD(runner.model.head.parameters(), lr=0.1))
    with pytest.raises(UsageError, match='no deep convolution that this run trains'):
        runner.train()


class Unfreezes(Hook):
    """Lets a frozen stem train from the third epoch on; freezes a norm in the middle of it."""

    def before_train_epoch(self, runner):
        if runner.epoch == 2:
            network = unwrap(runner.model).backbone
            network.frozen_stages = -1
            network.requires_grad_(True)


def test_layers_that_are_unfrozen(tmp_path):
    model = Classifier(frozen_stages=0)
    hooks = [Unfreezes()]
    make_runner(tmp_path, model=model, hooks=hooks, hook=dict(merge=True), epochs=5).train()
    assert {conv.form for conv in deep_convs(model)} == {'merged'}


def test_modes_stay():
    model = Classifier()
    model.backbone.blocks[0].conv.norm1.eval()
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    trained_layers(SimpleNamespace(model=model, optim_wrapper=optimizer, hooks=[]))
    assert not model.backbone.blocks[0].conv.norm1.training and model.backbone.training


class AveragesBackbone(EMAHook):
    """Averages a part of the model, under a name of its own."""

    def before_run(self, runner):
        self.src_model = unwrap(runner.model).backbone
        self.ema_model = ExponentialMovingAverage(self.src_model, momentum=0.1)

    def _swap_ema_state_dict(self, checkpoint):
        pass


class OwnEMA(Hook):
    """A user's hook that has an attribute of the same name."""

    ema_model = None

    def before_train(self, runner):
        self.ema_model = copy.deepcopy(unwrap(runner.model))


def test_hooks_with_other_averages(tmp_path):
    hook = AveragesBackbone()
    make_runner(tmp_path / 'part', hooks=[hook], hook=dict(merge=True)).train()
    assert {conv.form for conv in deep_convs(hook.ema_model)} == {'merged'}
    assert 'head.weight' in load_checkpoint(tmp_path / 'part/epoch_4_deploy.pth')['state_dict']
    make_runner(tmp_path / 'own', hooks=[OwnEMA()], hook=dict(merge=True)).train()


def test_two_schedules(tmp_path):
    other = dict(type='mmvanilla.DeepTrainingHook', decay_epochs=3)
    with pytest.raises(UsageError, match='there are two DeepTrainingHooks'):
        make_runner(tmp_path, hooks=[other]).train()


def test_a_fused_network_that_would_train(tmp_path):
    model = TwoStreams()
    model.rgb = switch_to_deploy(model.rgb).train()
    with pytest.raises(
        UsageError, match=r'freeze it, if it is a teacher \(requires_grad_\(False\)'
    ):
        make_runner(tmp_path, model=model).train()


class OwnMeanTeacher(Hook):
    """A user's own mean teacher, which nothing about the model tells."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        model = unwrap(runner.model)
        pairs = zip(model.student.parameters(), model.teacher.parameters())
        for source, average in pairs:
            average.data.lerp_(source.data, 0.1)


class MomentumEncoder(Distiller):
    """Averages a copy of its student inside itself, as contrastive learning does."""

    def __init__(self):
        super().__init__()
        self.teacher = ExponentialMovingAverage(self.student, momentum=0.1)

    def forward(self, inputs, labels, mode='tensor'):
        if mode == 'loss' and self.training:
            self.teacher.update_parameters(self.student)
        return super().forward(inputs, labels, mode)


def mean_teacher():
    model = Distiller()
    model.teacher.requires_grad_(False).eval()
    return model


AVERAGES = dict(
    mmdet=(mean_teacher, [dict(type='mmdet.MeanTeacherHook', momentum=0.1)]),
    own=(mean_teacher, [OwnMeanTeacher()]),
    encoder=(MomentumEncoder, []),
)


def test_an_average_by_iteration(tmp_path):
    record = StudentAndTeacher()
    hook = dict(by_epoch=False, decay_iters=4, decay_epochs=100)
    hooks = [record, OwnMeanTeacher()]
    make_runner(tmp_path, model=mean_teacher(), hooks=hooks, hook=hook).train()
    assert record.student == record.teacher == [{0.25}, {0.75}, {1.0}, {1.0}]


def test_optimizers_with_parameters_of_their_own():
    """Sharded training gives its optimizer flat copies: then requires_grad and modes decide."""
    model = Distiller()
    model.teacher.requires_grad_(False)
    flat = torch.nn.Parameter(torch.cat([p.flatten() for p in model.student.parameters()]))
    optimizer = torch.optim.SGD([flat], lr=0.1)
    runner = SimpleNamespace(model=model, optim_wrapper=OptimWrapper(optimizer), hooks=[])
    found = trained_layers(runner)
    expected = [prefix for prefix, _ in named_foldables(model) if prefix.startswith('student.')]
    assert list(found) == expected
    for layer in found.values():  # FSDP takes them out of the layers
        for module in layer.modules():
            module._parameters.clear()
    assert list(trained_layers(runner)) == expected


@pytest.mark.parametrize('merge', [False, True])
@pytest.mark.parametrize('kind', AVERAGES)
def test_averages_follow(kind, merge, tmp_path):
    """λ of an average is its student's; at λ = 1 both merge; resuming repeats the whole run."""
    build, hooks = AVERAGES[kind]
    record = StudentAndTeacher()
    arguments = dict(hook=dict(merge=merge), epochs=4)
    make_runner(tmp_path / 'whole', model=build(), hooks=[record, *hooks], **arguments).train()
    assert record.student == record.teacher == [{0.0}, {0.5}, {1.0}, {1.0}]
    saved = load_checkpoint(tmp_path / 'whole/epoch_4.pth')['state_dict']
    pairs = [key for key in saved if 'conv.conv1.weight' in key]
    assert len(pairs) == (0 if merge else 2 * len(list(deep_convs(Classifier()))))
    for epoch in (1, 2, 3):
        resume = dict(resume=True, load_from=str(tmp_path / f'whole/epoch_{epoch}.pth'))
        folder = tmp_path / f'from {epoch}'
        make_runner(folder, model=build(), hooks=hooks, **arguments, **resume).train()
        assert_same(folder, tmp_path / 'whole')


def test_frozen_stages_of_an_average(tmp_path):
    """A frozen stem stays as it is, in the student and in the average of it."""

    def build():
        model = mean_teacher()
        for network in (model.student, model.teacher):
            network.backbone = Classifier(frozen_stages=0).backbone
        model.teacher.requires_grad_(False)
        return model

    model = build()
    hooks = AVERAGES['mmdet'][1]
    make_runner(tmp_path, model=model, hooks=hooks, hook=dict(merge=True)).train()
    for network in (model.student, model.teacher):
        assert network.backbone.stem.conv.is_deep and network.backbone.stem.conv.lambda_ == 1
        assert not network.backbone.blocks[0].conv.is_deep


class TwoStreams(BaseModel):
    """RGB and depth, with backbones of different depths."""

    def __init__(self):
        super().__init__()
        self.rgb = Classifier()
        self.depth = VanillaNet('6', in_channels=1, widen_factor=1 / 64, act_num=1)
        self.head = torch.nn.Linear(64, 2)

    def forward(self, inputs, labels, mode='tensor'):
        logits = self.rgb(inputs, labels) + self.head(self.depth(inputs[:, :1])[0].mean((2, 3)))
        if mode == 'loss':
            return dict(loss=torch.nn.functional.cross_entropy(logits, labels))
        return logits


def test_two_streams(tmp_path):
    record = Record()
    model = TwoStreams()
    make_runner(tmp_path, model=model, hooks=[record], hook=dict(merge=True)).train()
    assert record.train == [{0.0}] * 2 + [{0.5}] * 2 + [{1.0}] * 4
    assert {conv.form for conv in deep_convs(model)} == {'merged'}
    fused = TwoStreams()
    fused.load_state_dict(load_checkpoint(tmp_path / 'epoch_4_deploy.pth')['state_dict'])
    torch.testing.assert_close(outputs(fused), outputs(model), rtol=1e-3, atol=1e-4)
