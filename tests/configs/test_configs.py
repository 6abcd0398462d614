import re

import pytest
from helpers.programs import ROOT
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmvanilla.compatibility import meta_device

# Detectors and segmenters: their names begin with the framework.
CONFIGS = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / 'configs').rglob('*_vanillanet*.py')
    if '_base_' not in path.parts
)


def build(cfg):
    init_default_scope(cfg.default_scope)
    with meta_device():
        return MODELS.build(cfg.model)


@pytest.mark.parametrize('config', CONFIGS)
def test_builds(config):
    cfg = Config.fromfile(ROOT / config)
    taker = cfg.model.get('neck') or cfg.model.decode_head
    assert build(cfg).backbone.out_channels == tuple(taker.in_channels)


def assert_coco_recipe(cfg, milestones):
    """Checks what the authors' configs have in common."""
    optimizer = dict(cfg.optim_wrapper.optimizer)
    assert optimizer.pop('lr')
    assert optimizer == dict(type='AdamW', betas=(0.9, 0.999), weight_decay=0.05)
    warmup, steps = cfg.param_scheduler
    assert (warmup.type, warmup.start_factor, warmup.end) == ('LinearLR', 0.001, 500)
    assert (steps.milestones, steps.gamma, cfg.train_cfg.max_epochs) == (milestones, 0.1, 12)
    assert cfg.auto_scale_lr.base_batch_size == 32 == 8 * cfg.train_dataloader.batch_size
    (resize,) = [t for t in cfg.train_pipeline if t.type == 'RandomChoiceResize']
    assert resize.scales == [(1333, side) for side in range(480, 1025, 32)]
    assert cfg.train_dataloader.dataset.pipeline == cfg.train_pipeline


FRAMEWORKS = {
    'retinanet': ((1, 2, 3), 8e-5, [10, 11]),
    'mask_rcnn': ((0, 1, 2, 3), 1.3e-4, [10, 12]),
}


@pytest.mark.parametrize('framework', FRAMEWORKS)
def test_authors_coco_recipe(framework):
    """The configs have the numbers of the authors' repository."""
    stages, lr, milestones = FRAMEWORKS[framework]
    cfg = Config.fromfile(ROOT / f'configs/{framework}_vanillanet13.py')
    backbone = cfg.model.backbone
    assert (backbone.arch, backbone.act_num, backbone.out_indices) == ('13', 4, stages)
    assert backbone.norm_cfg.type == 'SyncBN'
    assert backbone.init_cfg.checkpoint.endswith('vanillanet_13_act_num_4_kd_pretrain.pth')
    assert cfg.optim_wrapper.optimizer.lr == lr
    assert cfg.optim_wrapper.paramwise_cfg == dict(decay_rate=0.6, blocks_per_layer=2)
    assert_coco_recipe(cfg, milestones)
    masks = [t.get('with_mask', False) for t in cfg.train_pipeline if t.type == 'LoadAnnotations']
    assert masks == [framework == 'mask_rcnn']


MERGED = sorted((ROOT / 'configs').rglob('*_merged_*.py'))


@pytest.mark.parametrize('config', MERGED, ids=lambda path: path.stem)
def test_merged_configs_differ_in_a_word(config):
    (base,) = re.findall(r"_base_ = '(.+)'", config.read_text())
    merged, base = (Config.fromfile(path).to_dict() for path in (config, config.parent / base))
    if merged['model']['backbone'].pop('merged', False):
        assert merged['custom_hooks'][0]['decay_epochs'] == 0
    else:
        assert merged['custom_hooks'][0].pop('merge') is True
    assert merged == base


@pytest.mark.parametrize('framework', FRAMEWORKS)
def test_appendix_b(framework):
    """VanillaNet-11, learning rate 1.4e-4, decay 0.8; series number 3 as in Table 5."""
    cfg = Config.fromfile(ROOT / f'configs/coco/{framework}_vanillanet-11_coco.py')
    backbone = cfg.model.backbone
    assert (backbone.arch, backbone.act_num) == ('11', 3)
    assert backbone.init_cfg == dict(type='Pretrained', checkpoint='checkpoints/vanillanet_11.pth')
    assert cfg.optim_wrapper.optimizer.lr == 1.4e-4
    assert cfg.optim_wrapper.paramwise_cfg.decay_rate == 0.8
    assert_coco_recipe(cfg, FRAMEWORKS[framework][2])


@pytest.mark.parametrize('framework', FRAMEWORKS)
def test_swin_baseline(framework):
    """The config has mmdet's model, Swin's optimizer and our schedule."""
    cfg = Config.fromfile(ROOT / f'configs/coco/{framework}_swin-t_coco.py')
    assert cfg.model.backbone.type == 'SwinTransformer' and cfg.model.backbone.embed_dims == 96
    assert cfg.optim_wrapper.optimizer.lr == 1e-4
    assert cfg.optim_wrapper.paramwise_cfg.custom_keys.norm.decay_mult == 0
    assert_coco_recipe(cfg, FRAMEWORKS[framework][2])
