import pytest
import torch
from conftest import ROOT
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

CONFIGS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / 'configs').glob('*_vanillanet*.py'))


def build(cfg):
    init_default_scope('mmdet')
    with torch.device('meta'):
        return MODELS.build(cfg.model)


@pytest.mark.parametrize('config', CONFIGS)
def test_builds(config):
    cfg = Config.fromfile(ROOT / config)
    assert build(cfg).backbone.out_channels == tuple(cfg.model.neck.in_channels)


@pytest.mark.parametrize(('act_num', 'millions'), [(4, 75.38), (3, 74.59)])
def test_parameters_of_the_fused_detector(act_num, millions):
    """75.4 M in the authors' repository (series number 4), 74.6 M in Table 5 (3)."""
    cfg = Config.fromfile(ROOT / 'configs/retinanet_vanillanet13.py')
    cfg.model.backbone.update(act_num=act_num, deploy=True)
    count = sum(p.numel() for p in build(cfg).parameters())
    assert round(count / 1e6, 2) == millions


def test_authors_coco_recipe():
    """The figures of the authors' repository for RetinaNet."""
    cfg = Config.fromfile(ROOT / 'configs/retinanet_vanillanet13.py')
    backbone = cfg.model.backbone
    assert (backbone.arch, backbone.act_num, backbone.out_indices) == ('13', 4, (1, 2, 3))
    assert backbone.norm_cfg.type == 'SyncBN'
    assert backbone.init_cfg.checkpoint.endswith('vanillanet_13_act_num_4_kd_pretrain.pth')
    assert cfg.optim_wrapper.optimizer == dict(
        type='AdamW', lr=8e-5, betas=(0.9, 0.999), weight_decay=0.05
    )
    assert cfg.optim_wrapper.paramwise_cfg == dict(decay_rate=0.6, blocks_per_layer=2)
    warmup, steps = cfg.param_scheduler
    assert (warmup.type, warmup.start_factor, warmup.end) == ('LinearLR', 0.001, 500)
    assert (steps.milestones, steps.gamma, cfg.train_cfg.max_epochs) == ([10, 11], 0.1, 12)
    assert cfg.auto_scale_lr.base_batch_size == 32 == 8 * cfg.train_dataloader.batch_size
    (resize,) = [t for t in cfg.train_pipeline if t.type == 'RandomChoiceResize']
    assert resize.scales == [(1333, side) for side in range(480, 1025, 32)]
    assert cfg.train_dataloader.dataset.pipeline == cfg.train_pipeline
