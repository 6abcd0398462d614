"""The configs of the eleven ImageNet models have the paper's recipe, and run."""

import math

import pytest
import torch
from helpers.networks import ARCHS
from helpers.pairs import zip_equal
from helpers.programs import ROOT
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, DefaultScope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS

from mmvanilla import UsageError, VanillaNet, switch_to_deploy
from mmvanilla.checkpoint import load_checkpoint
from mmvanilla.models.folding.network import deep_convs

# Table 7 of the paper, one row per model; the 1.5x models use the last one.
COLUMNS = ('lr', 'weight_decay', 'layer_decay', 'mixup', 'ema_momentum', 'crop_ratio', 'source')
TABLE7 = {
    '5': (3.5e-3, 0.35, None, 0.1, 4e-5, 0.875, None),
    '6': (4.8e-3, 0.35, 0.8, 0.15, 4e-5, 0.875, None),
    '7': (4.8e-3, 0.35, 0.8, 0.4, 4e-5, 0.875, None),
    '8': (3.5e-3, 0.3, None, 0.4, 4e-5, 0.875, None),
    '9': (3.5e-3, 0.3, None, 0.4, 4e-5, 0.875, None),
    '10': (3.5e-3, 0.25, None, 0.4, 4e-5, 0.875, None),
    '11': (3.5e-3, 0.3, None, 0.8, 8e-5, 0.875, '10'),
    '12': (3.5e-3, 0.3, None, 0.8, 8e-5, 0.95, '11'),
    '13': (3.5e-3, 0.3, 0.8, 0.8, 8e-5, 0.95, '12'),
    '13-x1.5': (3.5e-3, 0.3, 0.8, 0.8, 8e-5, 0.95, None),
    '13-x1.5-ada': (3.5e-3, 0.3, 0.8, 0.8, 8e-5, 0.95, None),
}


def load(arch):
    return Config.fromfile(ROOT / f'configs/imagenet/vanillanet-{arch}_8xb128_in1k.py')


@pytest.fixture(params=ARCHS)
def arch(request):
    return request.param


def pick(transforms, name):
    (found,) = [t for t in transforms if t.type == name]
    return found


def test_there_are_eleven():
    names = {p.stem for p in (ROOT / 'configs/imagenet').glob('*xb128_in1k.py')}
    assert names == {f'vanillanet-{arch}_8xb128_in1k' for arch in ARCHS}


def test_recipe(arch):
    cfg, row = load(arch), dict(zip_equal(COLUMNS, TABLE7[arch]))
    assert cfg.model.backbone.arch == arch and cfg.model.head.num_classes == 1000
    assert cfg.model.backbone.get('act_num', 3) == 3
    assert cfg.model.head.in_channels == VanillaNet.arch_settings[arch]['channels'][-1]

    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.betas, optimizer.eps) == ('Lamb', (0.9, 0.999), 1e-8)
    assert (optimizer.lr, optimizer.weight_decay) == (row['lr'], row['weight_decay'])
    assert cfg.auto_scale_lr.base_batch_size == 1024 == 8 * cfg.train_dataloader.batch_size

    warmup, cosine = cfg.param_scheduler
    assert (warmup.type, warmup.begin, warmup.end) == ('LinearLR', 0, 5)
    assert 0 < warmup.start_factor <= 1e-6 and warmup.convert_to_iter_based
    assert (cosine.type, cosine.begin, cosine.end) == ('CosineAnnealingLR', 5, 300)
    assert cosine.convert_to_iter_based and 'eta_min' not in cosine
    assert cosine.eta_min_ratio * row['lr'] == pytest.approx(1e-6)
    assert cfg.train_cfg.max_epochs == 300

    mixup, cutmix = cfg.model.train_cfg.augments
    assert (mixup.type, mixup.alpha) == ('Mixup', row['mixup'])
    assert (cutmix.type, cutmix.alpha) == ('CutMix', 1.0)

    deep_training, ema = cfg.custom_hooks
    assert deep_training == dict(type='mmvanilla.DeepTrainingHook', decay_epochs=100)
    assert ema == dict(type='EMAHook', momentum=row['ema_momentum'], update_buffers=True)

    transforms = cfg.train_dataloader.dataset.pipeline
    rand_augment = pick(transforms, 'RandAugment')
    assert (rand_augment.policies, rand_augment.num_policies) == ('timm_increasing', 2)
    assert (rand_augment.magnitude_level, rand_augment.total_level) == (7, 10)
    assert rand_augment.magnitude_std == 0.5
    erasing = pick(transforms, 'RandomErasing')
    assert (erasing.erase_prob, erasing.mode) == (0.25, 'rand')
    assert pick(transforms, 'RandomResizedCrop').scale == 224
    assert not [t for t in transforms if t.type == 'ColorJitter']
    for dataloader in (cfg.val_dataloader, cfg.test_dataloader):
        test_transforms = dataloader.dataset.pipeline
        assert pick(test_transforms, 'ResizeEdge').scale == int(224 / row['crop_ratio'])
        assert pick(test_transforms, 'CenterCrop').crop_size == 224

    init_cfg = cfg.model.backbone.get('init_cfg')
    if row['source'] is None:
        assert init_cfg is None
    else:
        source = f'work_dirs/vanillanet-{row["source"]}_8xb128_in1k/epoch_300.pth'
        assert init_cfg == dict(type='Pretrained', checkpoint=source, source_arch=row['source'])
    assert [m.type for m in cfg.test_evaluator] == ['Accuracy', 'mmvanilla.ImageNetReaL']
    assert cfg.test_evaluator[0].topk == (1, 5) == cfg.val_evaluator.topk


def narrow(cfg):
    """Narrows the network to 1/64 of its width, without pre-trained weights."""
    cfg.model.backbone.update(widen_factor=1 / 64, init_cfg=None)
    cfg.model.head.in_channels //= 64
    return cfg


def test_learning_rate_of_each_layer(arch):
    cfg = narrow(load(arch))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model)
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    assert type(optimizer).__name__ == 'Lamb' and optimizer.defaults['max_grad_norm'] == 1.0
    groups = {id(p): group for group in optimizer.param_groups for p in group['params']}
    lr, weight_decay, rate = TABLE7[arch][:3]
    blocks = len(model.backbone.blocks)
    for name, param in model.named_parameters():
        parts = name.split('.')
        layer = {'stem': 0, 'blocks': 1}.get(parts[1], blocks + 1)
        layer += int(parts[2]) if parts[1] == 'blocks' else 0
        group = groups[id(param)]
        assert group['lr'] == pytest.approx(lr * (rate or 1) ** (blocks + 1 - layer)), name
        assert group['weight_decay'] == (weight_decay if param.ndim > 1 else 0), name


@pytest.mark.parametrize('arch', ['5', '6'])
def test_learning_rate_of_each_iteration(arch):
    """It is the authors': 5 epochs from 0 to the rate, then a cosine to 1e-6, scaled by layer."""
    cfg = narrow(load(arch))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model)
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    per_epoch, lr = 4, cfg.optim_wrapper.optimizer.lr
    schedulers = []
    for scheduler in cfg.param_scheduler:
        kwargs = {k: v for k, v in scheduler.items() if k not in ('type', 'convert_to_iter_based')}
        cls = PARAM_SCHEDULERS.get(scheduler.type)
        build = cls.build_iter_from_epoch
        schedulers.append(build(optimizer=optimizer, epoch_length=per_epoch, **kwargs))
    scales = [group['initial_lr'] / lr for group in optimizer.param_groups]
    warmup, total = 5 * per_epoch, 300 * per_epoch
    for step in range(total):
        if step < warmup:
            expected = lr * step / (warmup - 1)
        else:
            progress = (step - warmup) / (total - warmup)
            expected = 1e-6 + (lr - 1e-6) * (1 + math.cos(math.pi * progress)) / 2
        for group, scale in zip(optimizer.param_groups, scales):
            assert group['lr'] == pytest.approx(scale * expected, rel=1e-4, abs=1e-8), step
        for scheduler in schedulers:
            scheduler.step()


def make_cfg(arch, imagenet, work_dir, max_epochs):
    cfg = narrow(load(arch))
    for name in ('train', 'val', 'test'):
        dataloader = cfg[f'{name}_dataloader']
        dataloader.update(batch_size=4, num_workers=0, persistent_workers=False)
        dataloader.dataset.update(data_root=str(imagenet), metainfo=dict(classes=('a', 'b')))
    cfg.train_cfg.max_epochs = max_epochs
    cfg.work_dir = cfg.experiment_name = str(work_dir)
    cfg.custom_hooks[0].decay_epochs = 1
    cfg.log_level = 'WARNING'
    return cfg


# make test runs one of each kind: plain, fine-tuned from another, adaptive. The rest are slow.
@pytest.mark.parametrize(
    'arch',
    [
        name if name in ('6', '11', '13-x1.5-ada') else pytest.param(name, marks=pytest.mark.slow)
        for name in ARCHS
    ],
)
def test_runs(arch, imagenet, tmp_path):
    """Each config trains two iterations with EMA and evaluates; then it resumes, and fuses."""
    runner = Runner.from_cfg(make_cfg(arch, imagenet, tmp_path / 'run', 1))
    runner.train()
    assert runner.iter == 2
    resumed = make_cfg(arch, imagenet, tmp_path / 'run', 2)
    resumed.update(resume=True, experiment_name=str(tmp_path / 'resumed'))
    runner = Runner.from_cfg(resumed)
    runner.train()
    assert (runner.epoch, runner.iter) == (2, 4)
    history = runner.message_hub
    assert list(history.get_scalar('train/lambda').data[0][-2:]) == [1.0, 1.0]
    assert 0 <= history.get_scalar('val/accuracy/top5').current() <= 100
    loss = history.get_scalar('train/loss').data[0]
    assert len(loss) == 4 and all(map(math.isfinite, loss))
    saved = load_checkpoint(tmp_path / 'run/epoch_2.pth')
    assert 'ema_state_dict' in saved
    fused = load_checkpoint(tmp_path / 'run/epoch_2_deploy.pth')
    deploy_cfg = Config.fromstring(fused['meta']['cfg'], file_format='.py')
    assert deploy_cfg.model.backbone.deploy and deploy_cfg.model.head.deploy
    MODELS.build(deploy_cfg.model).load_state_dict(fused['state_dict'], strict=True)

    model = runner.model.train()
    data = model.data_preprocessor(next(iter(runner.train_dataloader)), training=True)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    expected = model.loss(**data)['loss']
    with torch.autocast('cpu', torch.bfloat16):
        got = model.loss(**data)['loss']
    assert got.isfinite() and got.item() == pytest.approx(expected.item(), rel=0.02)


def test_evaluated_lambda_is_the_schedules(imagenet, tmp_path):
    """With EMA of buffers too, λ follows the schedule at every epoch and ends at exactly 1."""
    cfg = make_cfg('5', imagenet, tmp_path, 4)
    cfg.custom_hooks[0].decay_epochs = 3
    runner = Runner.from_cfg(cfg)
    found = []
    forward = type(runner.model).predict

    def predict(model, *args, **kwargs):
        found.append({conv.lambda_ for conv in deep_convs(model)})
        return forward(model, *args, **kwargs)

    runner.model.predict = predict.__get__(runner.model)
    runner.train()
    assert found == [{0.0}, {1 / 3}, {2 / 3}, {1.0}]
    for epoch, value in enumerate([0, 1 / 3, 2 / 3, 1], 1):
        saved = load_checkpoint(tmp_path / f'epoch_{epoch}.pth')
        for key in ('state_dict', 'ema_state_dict'):
            weights = saved[key].items()
            assert {float(v) for k, v in weights if k.endswith('_extra_state')} == {value}


@pytest.mark.parametrize('on_ema', [True, False])
def test_fused_weights_are_those_evaluated(on_ema, imagenet, tmp_path):
    cfg = make_cfg('5', imagenet, tmp_path, 2)
    cfg.custom_hooks[1].update(evaluate_on_ema=on_ema, evaluate_on_origin=not on_ema)
    Runner.from_cfg(cfg).train()
    fused = load_checkpoint(tmp_path / 'epoch_2_deploy.pth')['state_dict']
    saved = load_checkpoint(tmp_path / 'epoch_2.pth')
    # mmengine puts the averaged weights into the state dict, and the model's own beside them.
    kept = saved['state_dict'] if on_ema else saved['ema_state_dict']
    prefix = '' if on_ema else 'module.'
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model)
    own = {name: kept[prefix + name] for name in model.state_dict()}
    model.load_state_dict(own)
    for name, value in switch_to_deploy(model).state_dict().items():
        torch.testing.assert_close(fused[name], value)


@pytest.mark.parametrize('arch', ['11', '12', '13'])
def test_starts_from_the_shallower_network(arch, tmp_path):
    """Layers at the same place in the same stage take its weights; the one new layer is random."""
    source = TABLE7[arch][-1]
    cfgs = [load(source), load(arch)]
    for cfg in cfgs:
        cfg.model.backbone.widen_factor = 1 / 64
        cfg.model.head.in_channels //= 64
    cfgs[0].model.backbone.init_cfg = None
    path = tmp_path / 'epoch_300.pth'
    cfgs[1].model.backbone.init_cfg.checkpoint = str(path)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        shallow, deep = (MODELS.build(cfg.model) for cfg in cfgs)
    torch.manual_seed(0)
    for param in shallow.parameters():
        torch.nn.init.normal_(param)
    torch.save(dict(state_dict=shallow.state_dict()), path)
    deep.init_weights()
    layers = [model.backbone.blocks for model in (shallow, deep)]
    # The new block is the last of the third stage, before the block of 2048 to 4096 channels.
    new = len(layers[0]) - 2
    pairs = [(i, i if i < new else i + 1) for i in range(len(layers[0]))]
    for i, j in pairs:
        for name, value in layers[0][i].state_dict().items():
            assert torch.equal(layers[1][j].state_dict()[name], value), (i, j, name)
    for name, value in shallow.backbone.stem.state_dict().items():
        assert torch.equal(deep.backbone.stem.state_dict()[name], value)
    assert layers[1][new].conv.conv1.weight.std().item() == pytest.approx(0.02, rel=0.2)


def test_source_that_is_deeper_is_refused(tmp_path):
    torch.save(VanillaNet('13', widen_factor=1 / 64).state_dict(), tmp_path / 'a.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'), source_arch='13')
    with pytest.raises(UsageError, match="source_arch='13' has more layers in some stage"):
        VanillaNet('12', widen_factor=1 / 64, init_cfg=init_cfg).init_weights()


@pytest.mark.parametrize(
    ('saved', 'said', 'message'),
    [
        ('11', '10', 'with its source_arch .*unexpected: checkpoint.blocks.8'),
        ('9', '10', 'missing: blocks.8'),
        ('10', '9', 'unexpected: checkpoint.blocks.7.*of another shape: blocks.7'),
    ],
)
def test_source_of_another_arch_is_named(tmp_path, saved, said, message):
    torch.save(VanillaNet(saved, widen_factor=1 / 64).state_dict(), tmp_path / 'a.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'), source_arch=said)
    with pytest.raises(UsageError, match=message):
        VanillaNet('11', widen_factor=1 / 64, init_cfg=init_cfg).init_weights()
