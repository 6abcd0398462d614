"""A detector's config in pure Python: its types are classes, and it has no default scope."""

import re
import runpy
from types import SimpleNamespace

import pytest
from helpers.config_options import loader_options
from helpers.narrow_detector import CLASSES
from helpers.programs import ROOT, fail, parse
from mmcv.transforms import LoadImageFromFile
from mmdet.apis import DetInferencer
from mmdet.models import RetinaNet
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.model.weight_init import PretrainedInit
from torch import nn

from mmvanilla import UsageError, VanillaNet
from mmvanilla.checkpoint import load_checkpoint
from mmvanilla.cli.checks import check_channels, check_pretrained
from mmvanilla.cli.config_in_checkpoint import config_in_checkpoint
from mmvanilla.cli.running import _join_on_cpu
from mmvanilla.config import deploy_config, is_a, name_types, nested_dicts, scope_of
from mmvanilla.models.loading.weights import pretrained_cfgs

CONFIG = 'tests/configs/pure_python/retinanet_vanillanet.py'
LOSS = 'mmdet.models.losses.smooth_l1_loss.L1Loss'


@pytest.fixture(scope='module')
def options(digits):
    data = (f'dataset.data_root={digits}/', f'dataset.metainfo.classes={CLASSES}')
    found = ['--cfg-options', *loader_options(*data)]
    for name in ('val', 'test'):
        found.append(f'{name}_evaluator.ann_file={digits}/annotations/instances_val2017.json')
    return found


@pytest.mark.slow
def test_every_tool(options, digits, run_tool, capfd, tmp_path):
    run = tmp_path / 'run'
    run_tool('tools/train.py', CONFIG, '--work-dir', run, *options)
    assert not list(run.glob('*tmp*'))
    saved = load_checkpoint(run / 'epoch_3_deploy.pth')
    assert "type='mmdet.L1Loss'" in saved['meta']['cfg']  # mmengine could not read LOSS
    for checkpoint, more in (('epoch_3', ['--deploy']), ('epoch_3_deploy', [])):
        run_tool('tools/test.py', CONFIG, run / f'{checkpoint}.pth', *more, *options)
    run_tool('tools/deploy.py', CONFIG, run / 'epoch_3.pth', run / 'deploy', '--onnx', *options)
    stem = run / 'deploy/retinanet_vanillanet'
    run_tool('tools/test.py', f'{stem}.py', f'{stem}.pth', '--work-dir', run)
    assert capfd.readouterr().out.count('coco/bbox_mAP_50:') == 4  # the run's own, and three
    run_tool('tools/analysis_tools/get_flops.py', CONFIG, '--deploy', '--shape', '128')
    run_tool(
        *('tools/analysis_tools/training_cost.py', CONFIG, '--batch-size', '2'),
        *('--rounds', '1', '--shape', '64', '64', '--device', 'cpu'),
    )
    flops, cost = parse(capfd.readouterr().out)[:2]
    assert flops[:2] == ['retinanet_vanillanet', '128x128']
    photo = next((digits / 'val2017').iterdir())
    for checkpoint, more in (
        ('epoch_3', []),
        ('epoch_3_deploy', []),
        ('epoch_3', ['--config', ROOT / CONFIG]),
    ):
        run_tool(
            *('tools/image_demo.py', run / f'{checkpoint}.pth', photo, *more),
            *('--out-dir', tmp_path / 'out'),
        )
        assert (tmp_path / 'out/vis' / photo.name).exists()
    # mmengine wrote this config, and MMDetection reads the one in the checkpoint.
    run_tool(
        'tools/test.py', run / 'retinanet_vanillanet.py', run / 'epoch_3.pth', '--work-dir', run
    )
    DetInferencer(weights=str(run / 'epoch_3.pth'), device='cpu')
    more = [*options, 'train_cfg.max_epochs=4']
    run_tool('tools/train.py', CONFIG, '--work-dir', run, '--resume', *more)
    assert load_checkpoint(run / 'epoch_4.pth')['meta']['epoch'] == 4


@pytest.mark.parametrize(
    ('part', 'place'),
    [
        (dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='no.pth'))), 'backbone'),
        (dict(teacher=dict(init_cfg=dict(type='Pretrained', checkpoint='no.pth'))), 'teacher'),
        (dict(necks=[dict(init_cfg=[dict(type='Pretrained', checkpoint='no.pth')])]), 'necks.0'),
    ],
)
def test_files_are_named_by_their_place(part, place):
    with pytest.raises(UsageError, match=rf'cfg-options model\.{place}\.init_cfg.*checkpoint='):
        check_pretrained(Config(dict(model=part)))
    with pytest.raises(UsageError, match=r'cfg-options model\.pretrained=\.\.\.'):
        check_pretrained(Config(dict(model=dict(pretrained='no.pth'))))


def test_checks(options, monkeypatch):
    given = fail(
        'train', CONFIG, *options, 'model.neck.in_channels=[1,2,3]', monkeypatch=monkeypatch
    )
    assert 'model.neck.in_channels is [1, 2, 3], but the backbone returns [16, 32, 64]' in given
    given = fail('train', CONFIG, monkeypatch=monkeypatch)
    assert 'COCO 2017 (images and annotations) is at' in given


def test_it_is_the_config_of_the_page():
    page = (ROOT / 'docs/works_with.md').read_text()
    (code,) = [c for c in re.findall(r'```python\n(.*?)```', page, re.S) if 'read_base' in c]
    code = code.replace('mmdet.configs.retinanet.retinanet_r50_fpn_1x_coco', '.retinanet_r50_fpn')
    text = re.sub(r'  # noqa: F\d+', '', (ROOT / CONFIG).read_text())
    assert code.strip() == text.partition('"""\n\n')[2].partition('\n\n# Not')[0]


class OwnHook(CheckpointHook):
    pass


class OwnNet(VanillaNet):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


@pytest.mark.parametrize(
    ('given', 'used'),
    [
        (CheckpointHook, 'mmvanilla.AtomicCheckpointHook'),
        ('CheckpointHook', 'mmvanilla.AtomicCheckpointHook'),
        ('mmengine.CheckpointHook', 'mmvanilla.AtomicCheckpointHook'),
        (OwnHook, OwnHook),
    ],
)
def test_checkpoints_are_written_completely(given, used):
    """tools/train.py replaces mmengine's hook, but not a subclass of it."""
    cfg = Config.fromfile(ROOT / CONFIG)
    cfg.default_hooks.checkpoint.type = given
    merge = runpy.run_path(str(ROOT / 'tools/train.py'))['merge_train_options']
    merge(cfg, SimpleNamespace(amp=False, auto_scale_lr=False, resume=None))
    assert cfg.default_hooks.checkpoint.type == used


class OwnLoss(nn.Module):
    pass


@MODELS.register_module(force=True)
class OwnHead(nn.Module):
    pass


def test_types_become_names():
    """As in a usual config; what a registry does not know becomes a path, or stays."""
    cfg = Config.fromfile(ROOT / CONFIG)
    cfg.model.bbox_head.loss_cls.type = OwnLoss
    cfg.model.bbox_head.type = OwnHead  # registered, but only once its module is imported
    cfg.model.bbox_head.loss_bbox.type = local = type('Local', (nn.Module,), {})
    name_types(cfg)
    names = {part['type'] for part in nested_dicts(list(cfg.values())) if 'type' in part}
    assert {'mmdet.RetinaNet', 'mmvanilla.VanillaNet', 'CheckpointHook', 'SGD'} < names
    assert {'LoadImageFromFile', 'mmdet.Resize', 'mmdet.AnchorGenerator', local} < names
    assert {f'{__name__}.OwnLoss', f'{__name__}.OwnHead'} < names
    assert scope_of(cfg) == 'mmdet'


@pytest.mark.parametrize(
    ('model', 'default_scope', 'scope'),
    [
        (dict(type=RetinaNet), None, 'mmdet'),
        (dict(type='mmdet.RetinaNet'), None, 'mmdet'),
        (dict(type='mmdet.models.RetinaNet'), None, 'mmdet'),
        (dict(type='RetinaNet'), 'mmdet', 'mmdet'),
        (dict(type=type('Own', (RetinaNet,), {})), None, 'mmdet'),
        (dict(type='mmvanilla.VanillaNet'), None, 'mmengine'),
        (dict(type='Nothing'), None, 'mmengine'),
    ],
)
def test_scope(model, default_scope, scope):
    assert scope_of(Config(dict(model=model, default_scope=default_scope))) == scope


@pytest.mark.parametrize(
    'name', [VanillaNet, 'mmvanilla.VanillaNet', 'mmvanilla.models.vanillanet.VanillaNet', OwnNet]
)
def test_backbone_by_any_name(name):
    assert is_a(dict(type=name), VanillaNet, 'mmdet')
    cfg = Config(dict(model=dict(backbone=dict(type=name)), default_scope='mmdet'))
    assert deploy_config(cfg).model.backbone.get('deploy') is True
    neck = dict(in_channels=[1])
    with pytest.raises(UsageError, match=r'but the backbone returns \[4096\]'):
        check_channels(Config(dict(model=dict(backbone=dict(type=name), neck=neck))))


@pytest.mark.parametrize('name', [PretrainedInit, 'Pretrained', 'mmengine.Pretrained'])
def test_pretrained_by_any_name(name):
    assert list(pretrained_cfgs(dict(type=name, checkpoint='a.pth')))
    with pytest.raises(UsageError, match='a.pth does not exist'):
        VanillaNet(
            '5', widen_factor=0.01, init_cfg=dict(type=name, checkpoint='a.pth')
        ).init_weights()


@pytest.mark.parametrize('name', [nn.SyncBatchNorm, 'SyncBN', 'MMSyncBN'])
def test_sync_norm_by_any_name(name):
    cfg = Config(dict(model=dict(backbone=dict(norm_cfg=dict(type=name)))))
    with pytest.raises(UsageError, match='SyncBN works only on GPUs'):
        _join_on_cpu(cfg)


@pytest.mark.parametrize('name', [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_norms_by_class(name):
    norm = VanillaNet('5', widen_factor=0.01, norm_cfg=dict(type=name)).stem.act.norm
    assert isinstance(norm, name) and norm.eps == 1e-6


def test_config_in_a_checkpoint():
    """Full names become classes, if packages register them; others stay refused."""
    text = Config.fromfile(ROOT / CONFIG).pretty_text
    assert LOSS in text
    cfg = config_in_checkpoint(dict(meta=dict(cfg=text)), 'a.pth')
    assert cfg.default_scope == 'mmdet'
    assert cfg.model.type is RetinaNet and cfg.model.backbone.type == 'mmvanilla.VanillaNet'
    assert cfg.test_dataloader.dataset.pipeline[0].type is LoadImageFromFile
    for name in ('mmdet.models.losses.smooth_l1_loss.l1_loss', 'mmengine.fileio.load', 'os.system'):
        with pytest.raises(UsageError, match='which is allowed only in a config that you trust'):
            config_in_checkpoint(dict(meta=dict(cfg=text.replace(LOSS, name))), 'a.pth')
    for name in ('mmcv.transforms.RandomResize', 'mmdet.datasets.CocoDataset'):
        evil = text.replace('mmcv.transforms.LoadImageFromFile', name)
        assert evil != text
        with pytest.raises(UsageError, match='which is allowed only in a config that you trust'):
            config_in_checkpoint(dict(meta=dict(cfg=evil)), 'a.pth')
